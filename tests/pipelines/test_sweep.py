"""A form becomes cells, and cells become commands that DVC takes as they are meant."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pipelines.config.params import check_params
from pydantic import ValidationError

from pipelines.variants import sweep
from pipelines.variants.sweep import Baseline, opening_form, plan_cells, plan_upstream
from pipelines.variants.loading import check_params
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import read_yaml

ROOT = Path(__file__).parents[2]
PARAMS = yaml.safe_load((ROOT / "profiles/mnist.yaml").read_text())


def baseline(revision="abc", **changes):
    return Baseline(revision, PARAMS, PARAMS | changes)


def test_a_form_is_every_combination_of_its_lists():
    form = opening_form(noise_ratios=[0, 0.5], regularizers=["ce", "kl"], regularizer_weights=[0.1, 1], seeds=[1])
    cells = plan_cells(form, baseline())
    assert len(cells) == len({cell.name for cell in cells}) == 8
    assert cells[0].setting == {
        "noise_ratio": 0.0,
        "regularizer": "ce",
        "regularizer_weight": 0.1,
        "reward": "mse+perceptual",
    }
    assert cells[0].overrides["align.seeds"] == [1] and cells[0].overrides["align.noise_ratio"] == 0.0


def test_without_a_regularizer_its_weight_makes_no_cells():
    form = opening_form(noise_ratios=[0.5], regularizers=["none", "ce"], regularizer_weights=[0.1, 1.0])
    assert [cell.setting["regularizer_weight"] for cell in plan_cells(form, baseline())] == [0.0, 0.1, 1.0]


def test_a_chosen_reward_term_has_the_profiles_weight_and_the_others_none():
    (cell,) = plan_cells(opening_form(noise_ratios=[0.5], reward_terms=["perceptual+l1"]), baseline())
    weights = {name: value for name, value in cell.overrides.items() if name.startswith("align.reward.")}
    assert weights == {
        "align.reward.mse": 0.0,
        "align.reward.perceptual": PARAMS["align"]["reward"]["perceptual"],
        "align.reward.l1": 1.0,
        "align.reward.embedding": 0.0,
    }


def test_a_cells_name_follows_its_parameters_and_its_baseline():
    def names(**changes):
        revision = changes.pop("revision", "abc")
        form = opening_form(**({"noise_ratios": [0.0, 0.5]} | changes))
        return [cell.name for cell in plan_cells(form, baseline(revision))]

    assert names() == names() == names(parallelism=2)  # how it is run does not matter
    assert sweep.sweep_name(plan_cells(opening_form(noise_ratios=[0.5, 0.0]), baseline())) == sweep.sweep_name(
        plan_cells(opening_form(noise_ratios=[0.0, 0.5]), baseline())
    )
    for change in ({"revision": "def"}, {"seeds": [9]}, {"steps": 7}, {"threads": 2}):
        assert not set(names()) & set(names(**change))


def test_the_upstream_is_shared_by_cells_that_differ_in_the_alignment_alone():
    one, other = opening_form(noise_ratios=[0.0], steps=5), opening_form(noise_ratios=[0.9])
    assert plan_upstream(one, baseline()) == plan_upstream(other, baseline())
    assert plan_upstream(one, baseline()) != plan_upstream(opening_form(seeds=[9]), baseline())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(plan_upstream(one, baseline()).targets) <= set(stages)


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
    assert cell.setting["reward"] == "mse+perceptual"


@pytest.mark.parametrize("reward", ["prior", "mse+embedding"])
def test_a_reward_that_the_profiles_rivals_cannot_be_trained_with_makes_a_cell(reward):
    assert set(PARAMS["rivals"]["methods"]) & {"ste", "tokenizer"}
    (cell,) = plan_cells(opening_form(noise_ratios=[0.5], reward_terms=[reward]), baseline())
    assert check_params(sweep._apply(cell.overrides, PARAMS)).rivals.methods == ()  # what the cell's own process reads


def test_the_name_of_every_planned_cell_tells_that_it_is_one():
    form = opening_form(
        noise_ratios=[0, 1e-5],
        regularizers=["ce", "kl", "none"],
        regularizer_weights=[0, 0.1],
        reward_terms=["mse", "mse+perceptual", "prior"],
    )
    assert all(sweep.is_cell(cell.name) for cell in plan_cells(form, baseline()))
    assert not sweep.is_cell(plan_upstream(form, baseline()).name) and not sweep.is_cell("noisy-mouse")


def test_a_cell_that_breaks_a_rule_of_the_parameters_is_refused_before_anything_runs():
    rewarding = baseline(score=PARAMS["score"] | {"extractors": ["reward-classifier"]})
    with pytest.raises(ParameterError, match="score.extractors"):
        plan_cells(opening_form(), rewarding)


def test_another_profile_is_its_differences_from_params_yaml():
    other = baseline(profile="other", subset=PARAMS["subset"] | {"splits": {"train": 5, "scorer": 3, "heldout": 4}})
    (cell,) = plan_cells(opening_form(noise_ratios=[0.5]), other)
    assert cell.overrides["profile"] == "other" and cell.overrides["subset.splits.train"] == 5
    assert "generator.dim" not in cell.overrides


def test_a_command_names_the_experiment_its_overrides_and_the_stage():
    (cell,) = plan_cells(opening_form(noise_ratios=[0.5]), baseline())
    line = sweep.command(cell)
    assert line[:5] == ["python", "-m", "pipelines.variants.experiment", "--name", cell.name]
    assert "align.seeds=[4, 5, 6]" in line and line[-1] == "cell"


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    """`dvc` and `python` are those beside this Python, and `pipelines` is ours in any folder."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    (root / "profiles").mkdir()
    (root / "params.yaml").write_text("a: {x: 1.0e-3, list: [1], text: plain, gone: 1, empty: null}\n")
    (root / "profiles/other.yaml").write_text(
        "a: {x: 1.0e-6, list: [[1, 2.5], 3], text: 'a, {b}: \"c\" = d', empty: true, new: {y: null}}\n"
    )
    (root / "dvc.yaml").write_text("stages: {s: {cmd: cp params.yaml out, params: [a], outs: [out: {cache: false}]}}")
    for line in ("git init -q", "dvc init -q", "git add -A", "git -c user.name=x -c user.email=x@y commit -qm first"):
        subprocess.run(line.split(), cwd=root, check=True)
    return root


def test_dvc_understands_every_kind_of_override_and_the_experiment_is_found_by_its_name(repository):
    found = sweep.read_baseline("other", repository)
    cell = sweep.Cell("cell-1", {}, sweep._differences(found.params, found.profile), ("s",))
    assert cell.name not in sweep.experiments(repository)
    subprocess.run(sweep.command(cell), cwd=repository, check=True)
    commit = sweep.experiments(repository)[cell.name]
    with (repository / "ran.yaml").open("w") as file:
        subprocess.run(["git", "show", f"{commit}:out"], cwd=repository, stdout=file, check=True)
    assert read_yaml(repository / "ran.yaml") == found.profile


def test_scores_that_cannot_be_read_are_told_with_cell_file_and_remedy(repository):
    for seed, content in {0: '{"score/fid": 1.5}', 1: '{"score/fid": 2.5}', 2: "spoilt", 3: '{"score/is": 1}'}.items():
        path = repository / sweep.METRICS.format(seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for line in (
        "add -A",
        "-c user.name=x -c user.email=x@y commit -qm cell",
        "update-ref refs/exps/ab/cdef/cell-1 HEAD",
    ):
        subprocess.run(["git", *line.split()], cwd=repository, check=True)
    assert sweep.read_scores("cell-1", [0, 1], repository) == {"score/fid": [1.5, 2.5]}
    for seed in (2, 3, 4):  # damaged, other scores, missing
        with pytest.raises(FileError, match=rf"cell@{seed}\.json: experiment cell-1 .*dvc exp remove cell-1"):
            sweep.read_scores("cell-1", [0, seed], repository)
    with pytest.raises(FileError, match="cell-2: there is no such experiment"):
        sweep.read_scores("cell-2", [0], repository)


def test_the_baseline_follows_uncommitted_code_and_names_an_unknown_profile(repository):
    before = sweep.read_baseline(None, repository)
    assert before.params == before.profile
    (repository / "dvc.yaml").write_text((repository / "dvc.yaml").read_text() + "\n")
    assert sweep.read_baseline(None, repository).revision != before.revision
    with pytest.raises(ParameterError, match="profile: there is no profile 'mnits'; there are: other"):
        sweep.read_baseline("mnits", repository)
