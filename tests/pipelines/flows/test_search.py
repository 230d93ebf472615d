"""A search as its users run it, from plain Python in a toy repository: a cell's FID is 10 less its noise ratio."""

import json
import os
import subprocess
import sys

import pytest

from tests.toy import WORK, make_toy

PLAIN = """
import json, sys
from pipelines.flows.ablation_sweep import ablation_sweep, plan_text  # before prefect, whose settings it makes
from prefect.client.orchestration import get_client
from pipelines.tracking import mlflow_runs
from pipelines.variants import search
from pipelines.variants.sweep import read_baseline
from pipelines.variants.sweep_form import opening_form

search.STARTUP = 2  # so that a third cell can be pruned
form = opening_form(noise_ratios=[0.0, 1.0], seeds=[1, 2, 3], search="optuna", cells=int(sys.argv[1]))
plan = plan_text(form, read_baseline(None))
ablation_sweep(form)
with get_client(sync_client=True) as client:
    (run, *_) = sorted(client.read_flow_runs(), key=lambda run: run.created, reverse=True)
    artifacts = sorted((a for a in client.read_artifacts() if a.flow_run_id == run.id), key=lambda a: a.created)
    tasks = {task.name: task.state.name for task in client.read_task_runs() if task.flow_run_id == run.id}
(sweep,) = mlflow_runs.find_runs("mnist", "tags.stage = 'sweep'")
(*_, table) = [json.loads(a.data) for a in artifacts if a.type == "table"]
told = {"plan": plan, "tasks": tasks, "table": table, "metrics": sweep.data.metrics, "params": sweep.data.params}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What is told of a search of three cells, and of the same one with four when it is run again."""
    root = tmp_path_factory.mktemp("plain") / "toy"
    make_toy(root)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "VAPI_"))}
    environment |= {"PREFECT_HOME": str(root.with_name("prefect")), "OMP_NUM_THREADS": "1"}
    told = []
    for cells in ("3", "4"):
        command = [sys.executable, "-c", PLAIN, cells]
        result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        told.append(json.loads(result.stdout.splitlines()[-1]))
    told[1]["began"] = [
        line for line in (root / WORK / "stages.log").read_text().splitlines() if "began score@" in line
    ]
    return told


def ended(table):
    return [row["state"] for row in table]


def test_a_search_runs_as_many_cells_as_its_budget_has_and_prunes_those_that_do_badly_with_one_seed(told):
    table = told[0]["table"]
    assert len(table) == 3 and ended(table)[:2] == ["completed"] * 2
    scores = [float(row["fid/scorer"].split()[0]) for row in table]
    pruned = ended(table)[2] == "pruned"
    assert pruned == (scores[2] > (scores[0] + scores[1]) / 2)
    assert pruned == (not table[2]["fid/scorer"].endswith("± 0"))  # a pruned one has one seed


def test_run_again_with_more_cells_it_runs_only_what_is_new(told):
    before, after = told[0]["table"], told[1]["table"]
    assert len(after) == 4
    assert [row["cell"] for row in after[:3]] == [row["cell"] for row in before]
    assert [row["fid/scorer"] for row in after[:3]] == [row["fid/scorer"] for row in before]
    assert set(ended(after)[:3]) <= {"skipped", "pruned"} and ended(after)[3] in ("completed", "pruned")
    runs = 2 * ended(before).count("completed") + ended(before).count("pruned")
    assert len(told[1]["began"]) == runs + (2 if ended(after)[3] == "completed" else 1)


def test_plan_and_mlflow_tell_of_it(told):
    first, again = told
    assert first["plan"].startswith("a search of 3 cells: ξ 0 to 1, β 0.1, ce,")
    assert ": a search of 4 cells, 3 of them finished before" in again["plan"]
    assert again["params"]["search"] == "optuna" and again["params"]["cells"] == "4"
    best = min(float(row["fid/scorer"].split()[0]) for row in again["table"])
    assert again["metrics"]["sweep/best/fid/scorer"] == pytest.approx(best, rel=1e-3)
    assert again["metrics"]["sweep/ended"] == again["metrics"]["sweep/cells"] == 4
