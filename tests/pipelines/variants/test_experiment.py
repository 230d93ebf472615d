"""Experiments side by side in one repository: each runs once, in a clone of its own, and has its own result."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.processes import Guarded, marked
from pipelines.repository.clones import state_of
from pipelines.repository.git import experiments
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
        self.head = self.git("rev-parse", "HEAD")
        upstream = Experiment("upstream", self.head, self.head, {"align.seeds": [1]}, "score-control@base")
        assert self.start(upstream).wait() == 0

    def cell(self, noise: float) -> Experiment:
        name = variant_of(noise)
        variant = {"table": "sweep", "method": "va-pi", "align": {"noise_ratio": noise}, "guidance_scales": [1.0]}
        return Experiment(f"{name}-00000000", self.head, "upstream", {f"+variants.{name}": variant}, f"score@{name}")

    def start(self, cell: Experiment) -> subprocess.Popen:
        return subprocess.Popen(command(cell), cwd=self.root, env=self.environment)

    def runs(self, noise: float) -> int:
        """How often the stage of a cell has begun."""
        return (self.work / "stages.log").read_text().splitlines().count(f"began score@{variant_of(noise)} {noise}")

    def result(self, noise: float) -> float:
        """The score that the experiment of a cell has in git."""
        path = f"reports/scores/sweep/{variant_of(noise)}/scores.csv"
        return float(self.git("show", f"{experiments(self.root)[self.cell(noise).name]}:{path}").rpartition(",")[2])

    def clones(self) -> list[str]:
        return sorted(path.name for path in (self.work / "clones").iterdir() if path.is_dir())

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True
        ).stdout.strip()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return Toy(tmp_path_factory.mktemp("experiments") / "toy")


def test_experiments_that_start_at_the_same_moment_run_once_each_and_end_with_their_own_result(toy):
    cells = [toy.cell(noise) for noise in (0.2, 0.3, 0.4)]
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
    assert len(toy.clones()) == 3  # as many as ran at the same time
    commits = experiments(toy.root)
    changed = toy.git("diff", "--name-only", commits["upstream"], commits[cells[0].name]).split()
    changed.remove(".dvc/tmp/repro.dat")  # which `dvc exp save` (3.67) leaves there
    assert changed == ["dvc.lock", "params.yaml", f"reports/scores/sweep/{variant_of(0.2)}/scores.csv"]
    assert toy.git("status", "--porcelain") == ""


def test_an_experiment_begins_with_uncommitted_changes_and_builds_on_the_commit_all_the_same(toy):
    path = toy.root / "toy.py"
    kept = path.read_text()
    path.write_text(kept + "# changed\n")
    changed = Experiment("changed", toy.head, state_of(toy.root), {"align.seeds": [1]}, "subset")
    path.write_text(kept)
    assert toy.start(changed).wait() == 0
    commit = experiments(toy.root)["changed"]
    assert toy.git("show", f"{commit}:toy.py").endswith("# changed")
    assert toy.git("rev-parse", f"{commit}^") == toy.head and toy.git("status", "--porcelain") == ""


def test_a_killed_experiment_leaves_no_process_and_can_be_run_again(toy, monkeypatch):
    killed, hold = toy.cell(0.15), toy.work / "hold-0.15"
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


def test_the_clone_of_a_killed_experiment_is_used_again_when_nobody_works_in_it_any_more(toy):
    hold = toy.work / "hold-0.16"
    hold.touch()
    killed = toy.start(toy.cell(0.16))
    while not toy.runs(0.16):
        assert killed.poll() is None
    stage = psutil.Process(killed.pid).children(recursive=True)[-1]
    place = Path(stage.cwd())
    killed.kill()
    killed.wait()
    assert toy.start(toy.cell(0.18)).wait() == 0  # beside the orphaned stage
    hold.unlink()
    psutil.wait_procs([stage])
    assert f"/{variant_of(0.16)}" in "".join(map(str, place.rglob("*")))
    assert toy.start(toy.cell(0.19)).wait() == 0
    left = [path for path in map(str, place.rglob("*")) if f"/{variant_of(0.16)}" in path]
    assert place.name == "0" and left == [] and toy.result(0.19) == 9.81


def test_what_a_failed_attempt_left_is_written_over_where_no_cache_has_the_outputs_of_the_commit(toy):
    """As in a fresh clone, whose dvc.lock names outputs that were made elsewhere."""
    shutil.rmtree(toy.root / ".dvc/cache")
    half_made = toy.work / "clones/0/data/subset"
    half_made.unlink(missing_ok=True)
    half_made.write_text("half of it")
    again = Experiment("again", toy.head, "upstream", {"align.seeds": [1]}, "score-control@base")
    assert toy.start(again).wait() == 0
    assert half_made.read_text() == "made" and again.name in experiments(toy.root)
