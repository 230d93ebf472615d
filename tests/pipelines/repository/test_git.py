"""What git cannot do is told in its own words."""

import subprocess

import pytest

from pipelines.repository.git import experiments, git
from pipelines.tracking import runs as tracking
from pipelines.variants import sweep
from vapi_core.errors import FileError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that is in no repository."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("profile: mnist\n")
    return tmp_path


def test_what_git_says_comes_back_and_so_does_what_it_refuses(folder):
    with pytest.raises(FileError, match=r"`git status` fails: fatal: not a git repository"):
        git(folder, "status")
    subprocess.run(["git", "init", "-q"], check=True)
    assert git(folder, "status", "--short") == "?? params.yaml\n"
    assert git(folder, "rev-parse", "--verify", "--quiet", "HEAD") == ""


def test_a_repository_of_somebody_else_is_told_with_gits_own_remedy(folder, monkeypatch):
    subprocess.run(["git", "init", "-q"], check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for its tests of this
    for look in (lambda: sweep.read_baseline(None), experiments):
        with pytest.raises(FileError, match="dubious ownership"):
            look()
    assert "mlflow.source.git.commit" not in tracking.source_tags()  # a run can do without


def test_where_git_is_not_installed_a_sweep_says_so_and_a_run_does_without(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(FileError, match=r"git, which versions it, cannot be found\. Install git"):
        sweep.read_baseline(None)
    assert "mlflow.source.git.commit" not in tracking.source_tags()
