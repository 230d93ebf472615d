"""Experiments side by side in one repository: each runs once, has its own result, and leaves what is not its own alone."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from dvc.repo import Repo, lock_repo
from dvc.repo.experiments import Experiments
from dvc.repo.experiments.exceptions import ExpQueueEmptyError
from dvc.repo.experiments.queue.tempdir import TempDirQueue
from dvc.repo.experiments.queue.workspace import WorkspaceQueue
from dvc.repo.experiments.refs import WORKSPACE_STASH
from dvc.utils.objects import cached_property

from pipelines.frame.processes import Guarded, marked
from pipelines.variants.cells import experiments
from pipelines.variants.experiment import OwnQueue, stash_of
from pipelines.variants.sweep import Experiment, command
from tests.toy import WORK, make_toy, variant_of


class Toy:
    """A toy repository whose upstream is in DVC's cache."""

    def __init__(self, root: Path):
        make_toy(root)
        self.root, self.work = root, root / WORK
        self.work.mkdir()
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "VAPI_WORK": str(self.work),
            "DVC_NO_ANALYTICS": "1",
        }
        upstream = Experiment("upstream", {"align.seeds": [1]}, "score-control@base")
        assert self.start(upstream).wait() == 0

    def start(self, cell: Experiment) -> subprocess.Popen:
        return subprocess.Popen(command(cell), cwd=self.root, env=self.environment)

    def runs(self, noise: float) -> int:
        """How often the stage of a cell has begun."""
        return (self.work / "stages.log").read_text().splitlines().count(f"began score@{variant_of(noise)} {noise}")

    def result(self, noise: float) -> float:
        """The score that the experiment of a cell has in git."""
        path = f"reports/scores/sweep/{variant_of(noise)}/scores.csv"
        return float(self.git("show", f"{experiments(self.root)[cell(noise).name]}:{path}").rpartition(",")[2])

    def stash(self, ref: str) -> list[str]:
        """Commits of a stash."""
        shown = ["reflog", "show", "--format=%H", ref]
        return self.git(*shown).split() if self.git("for-each-ref", ref) else []

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True
        ).stdout.strip()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return Toy(tmp_path_factory.mktemp("experiments") / "toy")


@pytest.fixture
def repo(toy, monkeypatch):
    """DVC in this process."""
    monkeypatch.chdir(toy.root)
    with Repo() as repo:
        yield repo


def cell(noise: float) -> Experiment:
    name = variant_of(noise)
    variant = {"table": "sweep", "method": "va-pi", "align": {"noise_ratio": noise}, "guidance_scales": [1.0]}
    return Experiment(f"{name}-00000000", {"align.seeds": [1], f"+variants.{name}": variant}, f"score@{name}")


def put(repo: Repo, queue: TempDirQueue, noise: float, name: str) -> str:
    """Puts an experiment into a queue, as a process does that is killed then; the commit of its entry."""
    line = command(cell(noise))
    params = {"params.yaml": [value for option, value in pairwise(line) if option == "--set-param"]}
    with lock_repo(repo):
        return repo.experiments.new(queue, targets=[cell(noise).stage], params=params, name=name).stash_rev


def test_experiments_that_start_at_the_same_moment_run_once_each_and_end_with_their_own_result(toy):
    cells = [cell(noise) for noise in (0.2, 0.3, 0.4)]
    holds = [toy.work / f"hold-{noise}" for noise in (0.2, 0.3)]
    for hold in holds:
        hold.touch()  # these two do not end before the third
    held = [toy.start(c) for c in cells[:2]]
    assert toy.start(cells[2]).wait() == 0
    for hold in holds:
        hold.unlink()
    assert [process.wait() for process in held] == [0, 0]
    assert [toy.runs(noise) for noise in (0.2, 0.3, 0.4)] == [1, 1, 1]
    assert [toy.result(noise) for noise in (0.2, 0.3, 0.4)] == [9.8, 9.7, 9.6]
    assert all(toy.stash(stash_of(c.name)) == [] for c in cells)
    assert toy.git("status", "--porcelain", "--untracked-files=no") == ""


def test_of_two_queues_that_are_full_each_gives_its_own_entry_in_any_order_and_then_none(toy, repo):
    first, second = (OwnQueue(repo, stash_of(name)) for name in ("first", "second"))
    entries = [put(repo, first, 0.5, "first"), put(repo, second, 0.6, "second")]
    taken = [first.get(), second.get()]
    for result in taken:
        result.executor.cleanup()
    assert [result.entry.stash_rev for result in taken] == entries
    for queue in (first, second):
        with pytest.raises(ExpQueueEmptyError):
            queue.get()


def test_an_entry_is_taken_under_the_repositorys_lock(repo, monkeypatch):
    locked = []
    queue = OwnQueue(repo, stash_of("locked"))
    put(repo, queue, 0.5, "locked")
    monkeypatch.setattr(OwnQueue, "init_executor", lambda *_, **__: locked.append(repo.lock.is_locked))
    queue.get()
    assert locked == [True] and not repo.lock.is_locked


def test_an_entry_of_somebody_else_is_left_alone(toy, repo):
    foreign = put(repo, TempDirQueue(repo, WORKSPACE_STASH), 0.7, "foreign")
    assert toy.start(cell(0.8)).wait() == 0
    assert toy.stash(WORKSPACE_STASH) == [foreign]
    assert (toy.runs(0.7), toy.runs(0.8)) == (0, 1) and "foreign" not in experiments(toy.root)


def test_what_a_killed_process_left_is_not_run_but_goes_when_its_experiment_is_run_again(toy, repo):
    again = cell(0.9)
    left = put(repo, OwnQueue(repo, stash_of(again.name)), 0.95, again.name)
    assert toy.stash(stash_of(again.name)) == [left]
    assert toy.start(again).wait() == 0
    assert (toy.runs(0.95), toy.runs(0.9)) == (0, 1)
    assert toy.stash(stash_of(again.name)) == []


def test_a_killed_experiment_leaves_no_process_and_can_be_run_again(toy, monkeypatch):
    killed, hold = cell(0.15), toy.work / "hold-0.15"
    hold.touch()
    monkeypatch.chdir(toy.root)
    with Guarded(command(killed), killed.name, toy.environment) as guarded:
        assert any(f"> python toy.py reports/scores/sweep/{variant_of(0.15)}" in line for line in guarded.lines())
        (dvc,) = (p for p in marked(killed.name) if p.cmdline()[1:3] == ["-m", "pipelines.variants.experiment"])
        dvc.kill()
        assert guarded.wait() != 0
        assert marked(killed.name) == []
    hold.unlink()
    assert killed.name not in experiments(toy.root)
    assert toy.start(killed).wait() == 0
    assert toy.result(0.15) == 9.85


def standalone(toy) -> list[Path]:
    """Temporary directories of experiments."""
    return list((toy.root / ".dvc/tmp/exps/standalone").glob("tmp*"))


def test_the_directory_of_a_killed_experiment_goes_with_the_next_one_when_nobody_works_in_it_any_more(toy):
    holds = [toy.work / f"hold-{noise}" for noise in (0.16, 0.17)]
    for hold in holds:
        hold.touch()
    killed, alive = toy.start(cell(0.16)), toy.start(cell(0.17))
    while not (toy.runs(0.16) and toy.runs(0.17)):
        assert killed.poll() is None and alive.poll() is None
    stage = psutil.Process(killed.pid).children(recursive=True)[-1]
    killed.kill()
    killed.wait()
    assert toy.start(cell(0.18)).wait() == 0
    assert len(standalone(toy)) == 2  # the orphaned stage works in one, the other's DVC lives
    holds[0].unlink()
    psutil.wait_procs([stage])
    assert toy.start(cell(0.19)).wait() == 0
    assert len(standalone(toy)) == 1
    holds[1].unlink()
    assert alive.wait() == 0 and standalone(toy) == []


def test_dvc_still_has_what_is_overridden():
    """If this fails, a new DVC needs a new look at `pipelines/variants/experiment.py`."""
    assert (
        WorkspaceQueue in TempDirQueue.__mro__ and "put" in WorkspaceQueue.__dict__ and "get" in TempDirQueue.__dict__
    )
    assert type(Experiments.__dict__["tempdir_queue"]) is cached_property
