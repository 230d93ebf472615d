"""A plan is made of parameters alone, and a page says whether it keeps to one that was committed."""

import subprocess

import pytest
import yaml

from pipelines.cli.__main__ import main
from pipelines.commands import plan as command
from pipelines.config.paths import REPORTS
from pipelines.reporting.plan import LATER, PLAN, plan_sentence, plan_texts, rows_of
from pipelines.reporting.tables import TABLES
from tests.pipelines.reporting.workspace import ROOT, content_with, params_with
from vapi_core.files import read_yaml


@pytest.fixture
def params():
    return params_with()


@pytest.fixture
def repository(tmp_path, params):
    """A repository with the plan of its params.yaml, neither of them committed."""
    path = tmp_path / PLAN
    path.parent.mkdir(parents=True)
    path.write_text(plan_texts(params)[PLAN], encoding="utf-8")
    set_params(tmp_path)
    git(tmp_path, "init", "--quiet")
    return tmp_path


def set_params(root, **changes):
    (root / "params.yaml").write_text(yaml.safe_dump(content_with(**changes)), encoding="utf-8")


def git(root, *arguments):
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root):
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "the plan")
    return git(root, "rev-parse", "--short", "HEAD").strip()


def test_a_plan_names_seeds_counts_extractors_and_the_claims_of_every_table_in_their_order(params):
    text = plan_texts(params)[PLAN]
    whole = " ".join(text.split())
    assert "3 seeds of every alignment: 4, 5, 6." in whole
    assert f"{params.sample.count:,} images of every set" in whole
    assert "Extractors: efficientnet-lite0, scorer-classifier." in whole
    assert "credit" in params.tables
    for name in {"report", *params.tables} - {"credit"}:
        claims = [claim.text for claim in TABLES[name].claims(rows_of(TABLES[name], params))]
        assert "\n".join(f"{number}. {claim}" for number, claim in enumerate(claims, 1)) in text
    assert "Those behind the first that finds no difference are not tested" in whole and "Holm" in whole


def test_the_rows_of_a_plan_are_those_of_the_page(params):
    assert rows_of(TABLES["report"], params) == ["base", "base at T 0.8", "base at T 0.6", "va-pi", "cross-entropy"]


def test_a_setting_that_is_changed_changes_the_plan(params):
    for changes in ({"seeds": [7, 8]}, {"sample": {"count": 50}}, {"align": {"steps": 7}}):
        assert plan_texts(params_with(**changes))[PLAN] != plan_texts(params)[PLAN]


def test_a_page_names_the_commit_of_its_plan(repository, params):
    assert "not committed" in plan_sentence(params, TABLES["report"], repository)
    name = commit(repository)
    (repository / "later").write_text("something else")
    commit(repository)
    sentence = plan_sentence(params, TABLES["report"], repository)
    assert f"last changed by commit {name}, 20" in sentence and "(plan.md)" in sentence


def test_what_was_not_planned_is_said_to_explore(repository, params):
    commit(repository)
    assert "**Not planned:**" in plan_sentence(params_with(seeds=[7, 8]), TABLES["report"], repository)
    (repository / PLAN).unlink()
    assert "**Not planned:**" in plan_sentence(params, TABLES["report"], repository)


def test_a_parameter_that_no_plan_names_stands_in_its_commit(repository):
    """The plan names no step of the tokenizer's training, but the base comes from it."""
    commit(repository)
    changes = {"tokenizer": {"training": {"steps": 777}}}
    set_params(repository, **changes)
    sentence = plan_sentence(params_with(**changes), TABLES["report"], repository)
    assert "**Not planned:**" in sentence and "has changed in tokenizer.training.steps." in sentence


def test_what_mlflow_shows_of_a_run_need_not_be_planned(repository):
    commit(repository)
    set_params(repository, align={"images_every": 7})
    sentence = plan_sentence(params_with(align={"images_every": 7}), TABLES["report"], repository)
    assert sentence.startswith("Planned in")


def test_a_parameter_that_is_newer_than_the_plan_had_its_default_then(repository, params):
    content = read_yaml(repository / "params.yaml")
    assert content["align"].pop("keep_every") == 0
    (repository / "params.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))
    commit(repository)
    assert plan_sentence(params, TABLES["report"], repository).startswith("Planned in")


def test_a_row_of_another_table_does_not_touch_a_page(repository):
    commit(repository)
    changes = {"variants": {"mine": {"table": "rivals", "method": "ste", "align": {}, "guidance_scales": [1.0]}}}
    set_params(repository, **changes)
    of_page = {name: plan_sentence(params_with(**changes), TABLES[name], repository) for name in ("report", "rivals")}
    assert of_page["report"].startswith("Planned in") and of_page["rivals"].startswith("**Not planned:**")


def test_a_plan_without_a_repository_is_not_said_to_be_committed(tmp_path, params):
    (tmp_path / PLAN).parent.mkdir()
    (tmp_path / PLAN).write_text(plan_texts(params)[PLAN], encoding="utf-8")
    assert "not committed" in plan_sentence(params, TABLES["report"], tmp_path)


def test_a_table_that_came_later_has_a_plan_of_its_own(tmp_path):
    """So the pages of the other tables go on naming the commit of theirs."""
    variant = {"table": "credit", "method": "va-pi", "align": {"credit": "token"}, "guidance_scales": [1.0]}
    changes = {"tables": ["noise", "credit"], "variants": {"credit-token": variant}}
    params, before = params_with(**changes), plan_texts(params_with(tables=["noise"]))
    plans = plan_texts(params)
    assert plans[PLAN] == before[PLAN] and set(plans) == {PLAN, LATER / "credit.md"}
    own = plans[LATER / "credit.md"]
    assert "better than image" in own and "ξ" not in own and "Rows that other tables have too" in own
    set_params(tmp_path, **changes)
    git(tmp_path, "init", "--quiet")
    for file, text in plans.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
        name = commit(tmp_path)
        table = TABLES["credit"] if file != PLAN else TABLES["noise"]
        assert f"({file.relative_to(REPORTS)}), last changed by commit {name}" in plan_sentence(params, table, tmp_path)


def test_the_command_writes_the_plans_of_params_yaml(tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["plan"]) == 0
    assert "commit it before you run" in capsys.readouterr().out
    plans = plan_texts(command.load_params())
    assert len(plans) == 2 and {file: file.read_text(encoding="utf-8") for file in plans} == plans


def test_the_plans_of_this_repository_are_of_its_params(monkeypatch):
    monkeypatch.chdir(ROOT)
    plans = plan_texts(command.load_params())
    assert {file: file.read_text(encoding="utf-8") for file in plans} == plans
