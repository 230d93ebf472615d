"""A command of a flow: where it runs, what it sees of the machine, what is told of its failure."""

import logging
import os
from pathlib import Path

import pytest

from pipelines.flows import running
from pipelines.flows.running import CommandFailed, one_gpu, run_command, visible_gpus

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder of working files of its own, and a log without a Prefect run."""
    monkeypatch.setattr(running, "WORK", tmp_path)
    monkeypatch.setattr(running, "get_run_logger", lambda: logging.getLogger("flow"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_tasks_that_run_side_by_side_have_gpus_of_their_own_and_share_them_only_where_there_are_more_tasks():
    gpus = ["2", "5"]
    with one_gpu(gpus) as first, one_gpu(gpus) as second, one_gpu(gpus) as third:
        assert [choice["CUDA_VISIBLE_DEVICES"] for choice in (first, second, third)] == ["2", "5", "2"]
    with one_gpu(gpus) as again:
        assert again == first


def test_a_gpu_goes_back_when_its_command_fails_and_the_failure_tells_the_end_of_the_output():
    for _ in range(2):
        with pytest.raises(CommandFailed, match="exit code 3(.|\n)*it saw 5"):
            run_command(["sh", "-c", "echo it saw $CUDA_VISIBLE_DEVICES; exit 3"], "fails", ["5", "7"])


def test_passwords_in_what_a_command_says_are_hidden_in_the_log_and_in_the_failure(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(CommandFailed) as failure:
        run_command(["sh", "-c", "echo cannot reach postgresql://lab:correct-horse@db:5432/mlflow; exit 1"], "fails")
    for told in (str(failure.value), caplog.text):
        assert "postgresql://lab:***@db:5432/mlflow" in told and "correct-horse" not in told


def test_without_gpus_nothing_is_hidden(monkeypatch):
    assert visible_gpus("cpu") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "whatever is set")
    run_command(["sh", "-c", 'test "$CUDA_VISIBLE_DEVICES" = "whatever is set"'], "sees", [])


def test_commands_find_working_files_assets_and_database_of_this_folder_from_another_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    here = running.environment()
    assert here["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/runs.db"
    assert here["VAPI_WORK"] == str(tmp_path) and here["PWD"] == here["VAPI_REPOSITORY"] == os.getcwd()
