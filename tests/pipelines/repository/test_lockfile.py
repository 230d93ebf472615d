"""What DVC cannot read is named, with what mends it; and it does mend it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.repository.graph import stage_graph
from pipelines.repository.lockfile import check_dvc_files, locked_stages, short_lock
from pipelines.variants.sweep import read_baseline
from tests.toy import WORK, make_toy
from vapi_core.errors import FileError

ROOT = Path(__file__).parents[3]


class Toy:
    """A toy repository whose dvc.lock knows one stage in git, and one more since."""

    def __init__(self, root: Path):
        make_toy(root)
        self.root = root
        (root / WORK).mkdir()
        self.run("dvc", "repro", "subset")
        self.run("git", "add", "dvc.lock")
        self.run("git", "-c", "user.name=toy", "-c", "user.email=toy@example.com", "commit", "-qm", "subset")
        self.run("dvc", "repro", "score")
        self.lock = root / "dvc.lock"
        self.whole = self.lock.read_bytes()

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "VAPI_WORK": str(self.root / WORK),
            "DVC_NO_ANALYTICS": "1",
        }
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=check)

    def begun(self) -> int:
        """How many stages have run."""
        return (self.root / WORK / "stages.log").read_text().count("began")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Toy(tmp_path_factory.mktemp("lockfile") / "toy")


@pytest.fixture
def toy(whole, monkeypatch):
    monkeypatch.chdir(whole.root)
    whole.lock.write_bytes(whole.whole)
    return whole


def test_a_whole_lock_file_is_nothing_to_speak_of(toy):
    assert toy.run("python", "-m", "pipelines.repository.lockfile").stderr == ""
    toy.lock.unlink()
    check_dvc_files()  # nor is none at all, as in a fresh repository


@pytest.mark.parametrize("last", ["schema", "  score@va-pi:", "    cmd:", "deps:\n    - pa"])
def test_a_cut_lock_file_is_told_and_what_mends_it_loses_nothing(toy, last):
    toy.lock.write_bytes(toy.whole[: toy.whole.rindex(last.encode()) + len(last) - 1])
    assert toy.run("dvc", "repro", "score", check=False).returncode != 0
    told = toy.run("python", "-m", "pipelines.repository.lockfile", check=False)
    assert told.returncode == 1
    assert told.stderr.startswith("error: dvc.lock: the file is cut off or damaged") and told.stderr.count("\n") == 1
    for look in (lambda: stage_graph("score"), lambda: read_baseline(None)):
        with pytest.raises(FileError, match="the file is cut off or damaged"):
            look()
    command = told.stderr.split("`")[1]
    assert command == "git checkout dvc.lock"
    before = toy.begun()
    toy.run(*command.split())
    toy.run("dvc", "repro", "score")
    assert toy.begun() == before and toy.lock.read_bytes() == toy.whole


def test_without_a_version_in_git_the_cut_file_is_to_be_removed(toy):
    toy.run("git", "rm", "-q", "--cached", "dvc.lock")
    toy.lock.write_bytes(b"schem")
    with pytest.raises(FileError, match="Run `rm dvc.lock`"):
        check_dvc_files()
    toy.run("git", "reset", "-q")


def test_a_run_that_dvc_was_killed_before_keeping_is_told_and_what_mends_it_has_the_stage_run_again(toy):
    for run in (toy.root / ".dvc/cache/runs").glob("*/*/*"):
        run.unlink()  # as if DVC had just made the folder
    toy.lock.unlink()
    assert toy.run("dvc", "repro", "score", check=False).returncode != 0
    told = toy.run("python", "-m", "pipelines.repository.lockfile", check=False)
    assert told.returncode == 1 and told.stderr.count("\n") == 1
    assert "the folder is empty" in told.stderr
    toy.run(*told.stderr.split("`")[1].split())
    toy.run("dvc", "repro", "score")
    assert toy.run("python", "-m", "pipelines.repository.lockfile").stderr == ""


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "dvc.lock"])
def test_marks_of_a_conflict_are_told_with_file_and_line(toy, name):
    path = toy.root / name
    kept = path.read_text()
    path.write_text(f"{kept}<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> other\n")
    line = kept.count("\n") + 1
    try:
        for look in (check_dvc_files, lambda: stage_graph("score"), lambda: read_baseline(None)):
            with pytest.raises(FileError, match=rf"{name}: line {line} is git's mark of a conflict"):
                look()
    finally:
        path.write_text(kept)


def test_vapi_run_tells_it_after_dvc_has_failed(toy):
    toy.lock.write_bytes(b"schem")
    told = toy.run("python", "-m", "pipelines.cli", "run", check=False)
    assert told.returncode == 1 and "git checkout dvc.lock" in told.stderr


def test_vapi_run_runs_what_is_not_up_to_date_and_names_the_page(toy):
    assert toy.run("python", "-m", "pipelines.cli", "run", "score").stdout.count("Running stage") == 0
    told = toy.run("python", "-m", "pipelines.cli", "run").stdout
    assert "Running stage 'report'" in told and told.endswith("The report: reports/report.md\n")
    assert "Running stage" not in toy.run("python", "-m", "pipelines.cli", "report").stdout


def test_make_runs_the_same(toy):
    for target, command in (("repro", "vapi run"), ("rivals", "vapi run table@rivals")):
        told = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
        assert command in told.stdout.splitlines()


def test_a_short_lock_has_what_dvc_needs_and_then_all_the_rest_as_it_was(toy):
    with short_lock(["subset", "tokenize", "unknown"]):
        assert sorted(locked_stages()) == ["subset", "tokenize"]
        toy.run("dvc", "repro", "classifier@reward")  # which DVC adds, from its run cache
        assert sorted(locked_stages()) == ["classifier@reward", "subset", "tokenize"]
    assert toy.lock.read_bytes() == toy.whole


def test_a_short_lock_of_no_stage_is_no_file_and_a_new_one_may_come_of_it(toy):
    with short_lock(["unknown"]):
        assert not toy.lock.exists()
        toy.run("dvc", "repro", "subset")
    assert toy.lock.read_bytes() == toy.whole
    toy.lock.unlink()
    with short_lock(["subset"]):
        toy.run("dvc", "repro", "subset")
    assert locked_stages() == ["subset"]
