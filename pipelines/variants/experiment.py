"""One DVC experiment in a temporary directory, beside any number of others: what runs a cell.

`vapi run --name NAME ...` is `dvc --wait-for-lock exp run --temp --name NAME ...`; sweeps call this module.
DVC's own command line runs in this process, with one departure from DVC (as of 3.67.1; tempdir.py and workspace.py in
dvc/repo/experiments/queue). DVC puts the experiments of all its processes in one git stash, from which each takes by position, without the
repository's lock, until the stash is empty: of two that run at the same time one may take the other's. Here every name has a
stash of its own, so that there is nothing of others to take, and the lock is held while an entry is taken too.

What a killed one leaves, DVC keeps for ever; here the next experiment removes it.

Only one process of a name may run at a time, as `processes` sees to in a sweep.
"""

import argparse
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from dvc.cli import main as run_dvc
from dvc.repo.experiments import Experiments
from dvc.repo.experiments.executor.base import BaseExecutor
from dvc.repo.experiments.queue.base import QueueEntry, QueueGetResult
from dvc.repo.experiments.queue.tempdir import TempDirQueue
from dvc.utils.objects import cached_property

from pipelines.frame.launch import one_message
from pipelines.frame.processes import working_directories

STASHES = "refs/vapi"  # not below refs/exps, where DVC takes what it does not know for an experiment


class OwnQueue(TempDirQueue):
    """The queue of one experiment, whose temporary directory is locked as long as this process lives."""

    def put(self, *args, **kwargs) -> QueueEntry:
        self.stash.clear()  # of what a killed process of this name left
        return super().put(*args, **kwargs)

    def get(self) -> QueueGetResult:
        """Under the lock that `put` has too: the last stash takes its folder along, where another may be about to begin."""
        with self.repo.lock:
            remove_leftovers(Path(self._standalone_tmp_dir))
            return super().get()

    @classmethod
    def init_executor(cls, *arguments, **options) -> BaseExecutor:
        executor = super().init_executor(*arguments, **options)
        _lock(Path(executor.root_dir))
        return executor


def remove_leftovers(directory: Path) -> None:
    """Removes the temporary directories of experiments whose process was killed and in which no stage of theirs works on.

    Call it under the repository's lock, under which they are made and locked.
    """
    left = []
    for path in directory.glob("tmp*"):
        if (lock := _lock(path)) is not None:
            os.close(lock)
            left.append(path)
    places = working_directories() if left else []
    for path in left:
        if not any(place.is_relative_to(path.resolve()) for place in places):
            shutil.rmtree(path, ignore_errors=True)


def _lock(directory: Path) -> int | None:
    """Locks a directory until what comes back is closed, or this process ends; None where another has locked it."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        return None
    return opened


def stash_of(name: str) -> str:
    """The git reference of an experiment's stash."""
    return f"{STASHES}/{name}"


def use_own_queue(name: str) -> None:
    """Makes DVC, in this process, run `--temp` experiments from the stash of this name."""

    def tempdir_queue(experiments: Experiments) -> TempDirQueue:
        return OwnQueue(experiments.repo, stash_of(name))

    Experiments.tempdir_queue = cached_property(tempdir_queue)


def run(name: str, arguments: Sequence[str]) -> int:
    """Runs an experiment with options and targets of `dvc exp run`; returns DVC's exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once: the stage ends with it, and the next experiment tidies up
    use_own_queue(name)
    return run_dvc(["--wait-for-lock", "exp", "run", "--temp", "--name", name, *arguments])


@one_message
def main() -> int:
    parser = argparse.ArgumentParser(
        usage="python -m pipelines.variants.experiment --name NAME [any option of `dvc exp run`] TARGET ...",
        description="Runs one DVC experiment in a temporary directory.",
        allow_abbrev=False,
    )
    parser.add_argument("--name", required=True, help="of the experiment")
    options, others = parser.parse_known_args()
    return run(options.name, others)


if __name__ == "__main__":
    sys.exit(main())
