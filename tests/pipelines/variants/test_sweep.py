"""A form becomes cells, and cells become commands that DVC takes as they are meant."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from pydantic import ValidationError

from pipelines.config.loading import check_params, load_params
from pipelines.config.profiles import profile_names, read_profile
from pipelines.config.variant import find_variant
from pipelines.repository.git import experiments, git
from pipelines.repository.graph import stage_graph
from pipelines.variants import sweep
from pipelines.variants.sweep import Baseline, Experiment, differences, plan_upstream, setting
from pipelines.variants.sweep_form import opening_form
from vapi_core.errors import ParameterError
from vapi_core.files import read_yaml

ROOT = Path(__file__).parents[3]
PARAMS = read_profile("mnist", ROOT)


def baseline(revision="abc", params=PARAMS, **changes):
    return Baseline("head", "state", revision, params, params | changes)


BASES = {"data/generator": "aa.dir", "data/tokens": "bb.dir"}


def plan_cells(form, baseline, bases=BASES):
    return sweep.plan_cells(form, baseline, bases)


def settings(cells):
    return [setting(experiment.cell.alignment) for experiment in cells]


def load_profile(name):
    return check_params(read_profile(name, ROOT))


def added(experiment):
    """What an experiment adds to the variants of params.yaml."""
    (variant,) = (v for name, v in experiment.overrides.items() if name == f"+variants.{experiment.cell.name}")
    return variant


def test_a_form_is_every_combination_of_its_lists():
    form = opening_form(noise_ratios=[0, 0.5], regularizers=["ce", "kl"], regularizer_weights=[0.1, 1], seeds=[1])
    cells = plan_cells(form, baseline())
    assert len(cells) == len({cell.name for cell in cells}) == 8
    assert settings(cells)[0] == {
        "noise_ratio": 0.0,
        "regularizer": "ce",
        "regularizer_weight": 0.1,
        "reward": "mse+perceptual",
        "credit": "image",
    }
    assert cells[0].cell.seeds == (1,) and added(cells[0])["align"]["noise_ratio"] == 0.0


def test_a_cell_is_a_variant_of_va_pi_in_the_table_of_sweeps_with_all_seeds_of_the_form():
    (cell,) = plan_cells(opening_form(noise_ratios=[0.5], seeds=[7, 8], steps=9), baseline())
    variant = cell.cell
    assert (variant.name, variant.table) == ("noise0_5-ce0_1-mse_perceptual", "sweep")
    assert variant.seeds == (7, 8) and variant.alignment.name == "va-pi"
    assert variant.alignment.optimization.steps == 9
    assert [(s.temperature, s.guidance_scale) for s in variant.samplings] == [(1.0, 1.0)]
    assert len(variant.sets) == 2  # one of each seed, and none on the way
    assert cell.stage == f"score@{variant.name}" and sweep.variant_name(cell.name) == variant.name


def test_credit_is_an_axis_where_there_is_a_reward():
    credits = ["image", "token", "token-3x3"]
    cells = plan_cells(opening_form(noise_ratios=[0.5], reward_terms=["mse", "prior"], credits=credits), baseline())
    assert [(s["reward"], s["credit"]) for s in settings(cells)] == [*(("mse", c) for c in credits), ("prior", "image")]
    assert [cell.cell.name.removeprefix("noise0_5-ce0_1-") for cell in cells] == [
        *("mse", "mse-token", "mse-token-3x3"),
        "prior",
    ]
    assert all(sweep.is_cell(cell.name) and sweep.variant_name(cell.name) == cell.cell.name for cell in cells)


def test_without_a_regularizer_its_weight_makes_no_cells():
    form = opening_form(noise_ratios=[0.5], regularizers=["none", "ce"], regularizer_weights=[0.1, 1.0])
    assert [s["regularizer_weight"] for s in settings(plan_cells(form, baseline()))] == [0.0, 0.1, 1.0]


def test_a_chosen_reward_term_has_the_profiles_weight_and_the_others_none():
    (cell,) = plan_cells(opening_form(noise_ratios=[0.5], reward_terms=["perceptual+l1"]), baseline())
    assert added(cell)["align"]["reward"] == {
        "mse": 0.0,
        "perceptual": PARAMS["align"]["reward"]["perceptual"],
        "l1": 1.0,
        "embedding": 0.0,
    }


def test_a_cells_name_follows_its_parameters_and_its_baseline():
    def names(**changes):
        revision, bases = changes.pop("revision", "abc"), changes.pop("bases", BASES)
        form = opening_form(**({"noise_ratios": [0.0, 0.5]} | changes))
        return [cell.name for cell in plan_cells(form, baseline(revision), bases)]

    assert names() == names() == names(parallelism=2)  # how it is run does not matter
    assert sweep.sweep_name(plan_cells(opening_form(noise_ratios=[0.5, 0.0]), baseline())) == sweep.sweep_name(
        plan_cells(opening_form(noise_ratios=[0.0, 0.5]), baseline())
    )
    unlike = BASES | {"data/generator": "cc.dir"}  # as another machine has made it
    for change in ({"revision": "def"}, {"bases": unlike}, {"seeds": [9]}, {"steps": 7}, {"threads": 2}):
        assert not set(names()) & set(names(**change))


def test_what_cells_build_on_is_read_from_the_lock_file_of_the_upstreams_commit_and_nothing_else_is(repository):
    folders = ("data/generator", "data/classifiers/reward", "data/tokens", "data/aligned/va-pi", "reports/scores/x")
    outs = [{"path": path, "hash": "md5", "md5": f"{i}.dir"} for i, path in enumerate(folders)]
    (repository / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"s": {"cmd": "s", "outs": outs}}}))
    git(repository, "add", "-A")
    git(repository, "-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "made")
    (repository / "dvc.lock").unlink()
    assert sweep.read_bases("HEAD", repository) == {
        "data/classifiers/reward": "1.dir",
        "data/generator": "0.dir",
        "data/tokens": "2.dir",
    }


def test_the_upstream_is_shared_by_cells_that_differ_in_the_alignment_alone():
    one, other = opening_form(noise_ratios=[0.0], steps=5), opening_form(noise_ratios=[0.9])
    assert plan_upstream(one, baseline()) == plan_upstream(other, baseline())
    assert plan_upstream(one, baseline()) != plan_upstream(opening_form(seeds=[9]), baseline())


def test_the_upstream_makes_all_that_a_cell_needs_before_its_own_stages_and_scores_the_base():
    upstream = set(stage_graph(plan_upstream(opening_form(), baseline()).stage, ROOT))
    needed = set(stage_graph("score@va-pi", ROOT))  # a variant like a cell
    assert needed - upstream == {"align@va-pi", "sample@va-pi", "score@va-pi"}
    assert upstream - needed == {"sample-control@base", "score-control@base"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_ratios", [1.5]),
        ("noise_ratios", []),
        ("noise_ratios", [0.5, 0.5]),
        ("noise_ratios", [i / 10_000 for i in range(10_000)]),
        ("regularizer_weights", [-1]),
        ("regularizers", ["dropout"]),
        ("reward_terms", ["mse+beauty"]),
        ("credits", ["pixel"]),
        ("seeds", []),
        ("parallelism", 0),
        ("noise_ratio", [0.5]),
    ],
)
def test_bad_input_is_refused_with_the_fields_name(field, value):
    with pytest.raises(ValidationError, match=field):
        opening_form(**{field: value})


def test_a_reward_is_one_cell_however_its_terms_are_ordered():
    terms = ["mse+perceptual", "perceptual+mse", "mse+mse+perceptual"]
    (cell,) = plan_cells(opening_form(noise_ratios=[0.5], reward_terms=terms), baseline())
    assert settings([cell])[0]["reward"] == "mse+perceptual"


@pytest.mark.parametrize("reward", ["prior", "mse+embedding"])
def test_a_reward_that_the_profiles_rivals_cannot_be_trained_with_makes_a_cell(reward):
    assert {"ste", "tokenizer-post-training"} <= set(PARAMS["variants"])
    (cell,) = plan_cells(opening_form(noise_ratios=[0.5], reward_terms=[reward]), baseline())
    assert settings([cell])[0]["reward"] == reward


def test_the_name_of_every_planned_cell_tells_that_it_is_one():
    form = opening_form(
        noise_ratios=[0, 1e-5],
        regularizers=["ce", "kl", "none"],
        regularizer_weights=[0, 0.1],
        reward_terms=["mse", "mse+perceptual", "prior"],
    )
    names = [cell.name for cell in plan_cells(form, baseline())]
    assert all(sweep.is_cell(name) for name in names) and not any("." in name or "+" in name for name in names)
    assert not sweep.is_cell(plan_upstream(form, baseline()).name) and not sweep.is_cell("noisy-mouse")


def test_a_cell_that_breaks_a_rule_of_the_parameters_is_refused_before_anything_runs():
    rewarding = baseline(score=PARAMS["score"] | {"extractors": ["reward-classifier"]})
    with pytest.raises(ParameterError, match="score.extractors"):
        plan_cells(opening_form(), rewarding)


def test_another_profile_is_its_differences_from_params_yaml():
    splits, variants = PARAMS["subset"]["splits"], dict(PARAMS["variants"])
    del variants["ste"]
    other = baseline(profile="other", subset=PARAMS["subset"] | {"splits": splits | {"train": 50}}, variants=variants)
    upstream, (cell,) = plan_upstream(opening_form(), other), plan_cells(opening_form(noise_ratios=[0.5]), other)
    assert upstream.overrides["profile"] == "other" and upstream.overrides["subset.splits.train"] == 50
    assert "~variants.ste" in upstream.overrides and "generator.dim" not in upstream.overrides
    assert cell.base == upstream.name and set(cell.overrides) == {f"+variants.{cell.cell.name}"}


def test_a_cell_takes_the_place_of_a_variant_of_its_name_whatever_that_changes():
    name = "noise0_5-ce0_1-mse_perceptual"
    before = PARAMS["variants"]["va-pi"] | {"align": {"noise_ratio": 0.25, "steps": 3}}
    (cell,) = plan_cells(
        opening_form(noise_ratios=[0.5]),
        baseline(params=PARAMS | {"variants": PARAMS["variants"] | {name: before}}),
    )
    assert cell.cell.name == name and cell.cell.alignment.optimization.steps == PARAMS["align"]["steps"]
    assert f"~variants.{name}.align.steps" in cell.overrides


def test_a_command_names_the_experiment_its_overrides_and_the_stage():
    form = opening_form(noise_ratios=[0.5], seeds=[1, 2])
    upstream, (cell,) = plan_upstream(form, baseline()), plan_cells(form, baseline())
    first, line = sweep.command(upstream), sweep.command(cell)
    assert line[:5] == ["python", "-m", "pipelines.variants.experiment", "--name", cell.name]
    assert line[5:9] == ["--baseline", "head", "--base", upstream.name] and "align.seeds=[1, 2]" not in line
    assert first[5:9] == ["--baseline", "head", "--base", "state"] and "align.seeds=[1, 2]" in first
    assert line[-1] == "score@noise0_5-ce0_1-mse_perceptual"
    assert any(part.startswith("+variants.noise0_5-ce0_1-mse_perceptual={table: ") for part in line)


def test_a_cell_is_one_process_however_many_the_profile_has():
    many = baseline(launch=PARAMS["launch"] | {"nodes": 2, "processes": 4})
    for experiment in (plan_upstream(opening_form(), many), *plan_cells(opening_form(), many)):
        assert not any(name.startswith("launch.") for name in experiment.overrides)  # those of params.yaml, 1
    overrides = plan_upstream(opening_form(), baseline(params=many.profile)).overrides
    assert (overrides["launch.nodes"], overrides["launch.processes"]) == (1, 1)


def test_a_cell_may_have_several_processes_and_is_another_one_then():
    form = opening_form(noise_ratios=[0.5], processes=2)
    (alone,), (together,) = plan_cells(opening_form(noise_ratios=[0.5]), baseline()), plan_cells(form, baseline())
    assert plan_upstream(form, baseline()).overrides["launch.processes"] == 2
    assert alone.name != together.name and alone.cell == together.cell
    for beside in ({"parallelism": 2}, {"on_workers": True}):
        with pytest.raises(ValidationError, match="processes: above 1 a cell has all GPUs"):
            opening_form(processes=2, **beside)


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    """`dvc` and `python` are those beside this Python, and `pipelines` is ours in any folder."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    (root / "profiles").mkdir()
    (root / "params.yaml").write_text(
        "a: {x: 1.0e-3, list: [1], text: plain, empty: null}\nvariants: {ar-grpo: {b: 1}, a-b_c: {d: 1}}\n"
    )
    (root / "profiles/base.yaml").write_text((root / "params.yaml").read_text())
    (root / "profiles/other.yaml").write_text(
        "a: {x: 1.0e-6, list: [[1, 2.5], 3], text: 'a, {b}: \"c\" = d', empty: true}\n"
        "variants: {ar-grpo: null, a-b_c: {d: 2}, noise0_5-ce1e-05-mse: {y: null, z: {}}}\n"
    )
    (root / "dvc.yaml").write_text(
        "stages: {s: {cmd: cp params.yaml out, params: [a, variants], outs: [out: {cache: false}]}}"
    )
    for line in ("git init -q", "dvc init -q", "git add -A", "git -c user.name=x -c user.email=x@y commit -qm first"):
        subprocess.run(line.split(), cwd=root, check=True)
    return root


def test_dvc_understands_every_kind_of_override_and_the_experiment_is_found_by_its_name(repository):
    found = sweep.read_baseline("other", repository)
    assert set(found.profile["variants"]) == {"a-b_c", "noise0_5-ce1e-05-mse"}
    cell = Experiment("cell-1", found.head, found.state, differences(found.params, found.profile), "s")
    assert cell.name not in experiments(repository)
    subprocess.run(sweep.command(cell), cwd=repository, check=True)
    commit = experiments(repository)[cell.name]
    with (repository / "ran.yaml").open("w") as file:
        subprocess.run(["git", "show", f"{commit}:out"], cwd=repository, stdout=file, check=True)
    assert read_yaml(repository / "ran.yaml") == found.profile


@pytest.mark.parametrize("profile", profile_names(ROOT))
def test_dvc_makes_of_params_yaml_the_cell_that_was_planned_under_any_profile(profile, tmp_path):
    form = opening_form(noise_ratios=[1e-5], regularizers=["kl"], reward_terms=["mse+perceptual"], steps=7)
    planned = Baseline("head", "state", "abc", PARAMS, read_profile(profile, ROOT))
    (cell,) = plan_cells(form, planned)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(PARAMS))
    for step in (plan_upstream(form, planned), cell):  # a cell begins with the files of the upstream
        changes = [value for option, value in pairwise(sweep.command(step)) if option == "--set-param"]
        apply_overrides(path, changes)
    made = load_params(path)
    assert find_variant(made, cell.cell.name) == cell.cell
    assert_same_but_for(made, load_profile(profile), "threads", "launch", "variants", "align")
    assert made.align.shared == load_profile(profile).align.shared and made.align.seeds == tuple(form.seeds)


def assert_same_but_for(made, planned, *sections):
    assert made.model_dump(exclude=set(sections)) == planned.model_dump(exclude=set(sections))


def test_the_baseline_follows_uncommitted_code_and_names_an_unknown_profile(repository):
    before = sweep.read_baseline(None, repository)
    assert before.params == before.profile
    (repository / "dvc.yaml").write_text((repository / "dvc.yaml").read_text() + "\n")
    assert sweep.read_baseline(None, repository).revision != before.revision
    with pytest.raises(ParameterError, match="profile: there is no profile 'mnits'; there are other"):
        sweep.read_baseline("mnits", repository)
