"""A worker for cells, before it starts: what it needs, and how many cells it takes."""

import subprocess

import pytest

from pipelines.flows import worker


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone without remotes, and a worker that is told instead of started."""
    started = []

    class Guarded:
        def __init__(self, command, name, environment):
            started.append(command)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def lines(self):
            return []

        def wait(self):
            return 0

    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    monkeypatch.setattr(worker, "Guarded", Guarded)
    monkeypatch.setattr(worker, "visible_gpus", lambda device: ["0", "1", "2"])
    return started


def test_without_a_server_or_remotes_it_says_what_is_missing(clone, monkeypatch, capsys):
    monkeypatch.setattr(worker, "PREFECT_API_URL", type("Unset", (), {"value": staticmethod(lambda: None)}))
    assert worker.main() == 1 and "PREFECT_API_URL is not set" in capsys.readouterr().err
    monkeypatch.setattr(worker, "PREFECT_API_URL", type("Set", (), {"value": staticmethod(lambda: "http://h:1/api")}))
    assert worker.main() == 1 and "git remote add origin URL" in capsys.readouterr().err
    assert clone == []


def test_it_takes_a_cell_for_each_gpu_and_warns_where_runs_would_stay_here(clone, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(worker, "PREFECT_API_URL", type("Set", (), {"value": staticmethod(lambda: "http://h:1/api")}))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    subprocess.run(["git", "remote", "add", "origin", "x"], check=True)
    (tmp_path / ".dvc/config").write_text("[core]\n    remote = store\n")
    assert worker.main() == 0
    (command,) = clone
    assert command[command.index("--limit") + 1] == "3" and command[command.index("--pool") + 1] == "cells"
    assert "the runs of cells stay in this clone" in capsys.readouterr().err
