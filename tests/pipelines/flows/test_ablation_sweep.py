"""A sweep's artifacts, and both flows from plain Python: no server runs, Prefect starts one for the time of the run."""

import base64
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.states import Completed

from pipelines.config.profiles import read_profile
from pipelines.flows import ablation_sweep
from pipelines.tracking import dashboards
from pipelines.variants.sweep import Baseline, plan_cells
from pipelines.variants.sweep_form import opening_form
from tests.toy import WORK, make_toy
from vapi_core.errors import FileError

PNG = b"\x89PNG\r\n\x1a\n"
PARAMS = read_profile("mnist", Path(__file__).parents[3])
PROFILE = PARAMS | {"profile": "tiny"}
(CELL,) = plan_cells(
    opening_form(noise_ratios=[0.0], reward_terms=["mse"]), Baseline("head", "state", "abc", PARAMS, PARAMS), {}
)
PLAIN = """
import json
from pipelines.flows.ablation_sweep import ablation_sweep  # before prefect, whose settings it makes
from prefect.client.orchestration import get_client
from pipelines.flows.reproduce import reproduce
from pipelines.variants.sweep_form import opening_form
from vapi_core.errors import VapiError

state = reproduce(target="tokenize", parallelism=1, return_state=True)
try:
    ablation_sweep(opening_form(noise_ratios=[0.0, 0.5, 0.75], seeds=[1]))
except VapiError as error:
    problem = str(error)
with get_client(sync_client=True) as client:
    artifacts = sorted(client.read_artifacts(), key=lambda a: a.created)
    tasks = {task.name: task.state.name for task in client.read_task_runs()}
told = {"reproduced": state.message, "problem": problem, "tasks": tasks}
print(json.dumps(told | {"artifacts": [(a.type, a.data) for a in artifacts]}))
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The artifacts that a sweep makes, newest of each key, in place of Prefect's."""
    made = {}

    def create(kind):
        return lambda content, key, **more: made.update({key: (kind, content, more)})

    for kind in ("image", "link", "progress", "table"):
        monkeypatch.setattr(ablation_sweep, f"create_{kind}_artifact", create(kind))
    monkeypatch.setattr(
        ablation_sweep, "update_progress_artifact", lambda bar, percent: made.update(done=("bar", percent, {}))
    )
    monkeypatch.setattr(ablation_sweep, "WORK", tmp_path)
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)  # where there is no experiment
    return made


def test_at_its_end_a_sweep_shows_its_figures_and_links_to_its_runs_and_dashboards(made, tmp_path, monkeypatch):
    server = "http://mlflow.example:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:correct-horse@mlflow.example:5000")
    registered = []
    monkeypatch.setattr(dashboards, "register", lambda profile, boards: registered.append((profile, boards)) or "7")
    progress = ablation_sweep.Progress([CELL], "toy")
    (sweep,) = (key for key, (kind, *_) in made.items() if kind == "table")
    figure = tmp_path / "sweeps" / sweep / "over-noise_ratio.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(PNG + b"of a grid")
    progress.conclude(PROFILE)

    kind, content, _ = made[f"{sweep}-over-noise-ratio"]
    assert kind == "image" and content.startswith("data:image/png;base64,")
    assert base64.b64decode(content.partition(",")[2]) == figure.read_bytes()
    links = {key.removeprefix(f"{sweep}-"): content for key, (kind, content, _) in made.items() if kind == "link"}
    ((profile, boards),) = registered
    assert profile == "tiny" and {board.key for board in boards} == {"ablation", "methods", "runs"}
    runs = f"{server}/#/experiments/7"
    assert links == {"mlflow": runs, **{board.key: dashboards.url(server, "7", board) for board in boards}}
    assert all(re.fullmatch("[a-z0-9-]+", key) for key in made)  # Prefect takes no other


def test_a_cell_whose_scores_are_gone_is_listed_with_its_problem_and_ends_nothing(made):
    ablation_sweep.Progress([CELL], "toy").finished(CELL.name, Completed())
    ((row,),) = (content for kind, content, _ in made.values() if kind == "table")
    assert "there is no such experiment" in row["problem"] and made["done"][1] == 100


def test_the_scores_of_several_seeds_have_a_standard_error_and_that_of_one_seed_stands_alone():
    assert ablation_sweep.scores_row({"score/fid/toy": [1.0, 3.0]}, "toy") == {"fid/toy": "2 ± 1"}
    assert ablation_sweep.scores_row({"score/fid/toy": [9.25]}, "toy") == {"fid/toy": "9.25"}


def test_the_scores_of_the_main_extractor_come_first():
    scores = {"score/fid/uci": [1.0], "score/recall/uci": [1.0], "score/fid/toy": [1.0], "score/recall/toy": [1.0]}
    assert list(ablation_sweep.scores_row(scores, "toy")) == ["fid/toy", "recall/toy", "fid/uci", "recall/uci"]


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PATH", "", "git, which versions it, cannot be found"),
        ("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1", "dubious ownership"),
    ],
)
def test_where_git_cannot_be_asked_a_sweep_is_one_message_from_the_command_line_and_in_prefect(
    tmp_path, monkeypatch, capsys, variable, value, words
):
    make_toy(tmp_path / "toy")
    monkeypatch.chdir(tmp_path / "toy")
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "argv", ["ablation_sweep", "--dry-run"])
    assert ablation_sweep.main() == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and "Traceback" not in err
    monkeypatch.setattr(ablation_sweep, "get_run_logger", lambda: logging.getLogger("flow"))
    with pytest.raises(FileError, match=words):  # which Prefect shows as the state of the run
        ablation_sweep.ablation_sweep.fn(opening_form(), dry_run=True)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What is there after both flows have run in a toy repository, where the metrics of a cell are spoilt."""
    root = tmp_path_factory.mktemp("plain") / "toy"
    make_toy(root)
    (root / WORK).mkdir(exist_ok=True)
    (root / WORK / "spoil-0.5").touch()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "VAPI_"))}
    environment |= {"PREFECT_HOME": str(root.with_name("prefect")), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PLAIN]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_both_flows_run_from_plain_python_without_a_server(told):
    assert told["reproduced"] == "2 stages are up to date"
    assert {told["tasks"][stage] for stage in ("subset", "tokenize")} == {"Completed"}
    assert {kind for kind, _ in told["artifacts"]} >= {"table", "progress", "image"}
    images = [data for kind, data in told["artifacts"] if kind == "image"]  # the grid, and the answer
    assert len(images) == 2 and all(base64.b64decode(i.partition(",")[2]).startswith(PNG) for i in images)


def test_a_cell_with_spoilt_metrics_is_red_and_listed_and_the_others_go_on(told):
    states = {name.partition("-")[0]: state for name, state in told["tasks"].items() if name.startswith("noise")}
    assert states == {"noise0": "Completed", "noise0_5": "Failed", "noise0_75": "Completed"}
    assert told["problem"].startswith("1 of 3 cells did not end well: noise0_5-")
    (table,) = (json.loads(data) for kind, data in told["artifacts"] if kind == "table")
    rows = {row["noise_ratio"]: row for row in table}
    assert [rows[n]["state"] for n in (0.0, 0.5, 0.75)] == ["completed", "failed", "completed"]
    assert "no scores there that can be read" in rows[0.5]["problem"] and rows[0.75]["fid/scorer"] == "9.25"
