"""What sends the journals of runs to MLflow while their stage works: a process beside a stage's command, else a thread.

Importing MLflow takes as long as importing torch, and one process does both one after the other. So a stage that is run
as a command has a process import MLflow from its first moment (`start_early`). It follows one journal after the other,
as the stage makes one run after the other. Where nobody has called for it, in tests and in commands that need MLflow
themselves, a thread sends.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

Follow = Callable[[Path, Callable[[float], bool]], str | None]  # `pipelines.tracking.runs.follow`


class UploadThread:
    """Sends from this process."""

    def __init__(self, follow: Follow, journal: Path):
        self._over = threading.Event()
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, args=(follow, journal), daemon=True)
        self._thread.start()

    def _run(self, follow: Follow, journal: Path) -> None:
        self._problem = follow(journal, self._over.wait)

    def finish(self) -> str | None:
        """Waits until all is sent; returns what went wrong, None if nothing did."""
        self._over.set()
        self._thread.join()
        return self._problem


class UploadProcess:
    """Sends from `python -m pipelines.tracking follow`. It is out of reach of Ctrl-C, and ends with this process.

    Orders are lines of JSON on its standard input: {"follow": DIRECTORY} of the next run's journal, {"send": DIRECTORY}
    of one that is sent whole when the run has ended, {"finish": null}. It answers the last with what went wrong, or
    null.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-m", "pipelines.tracking", "follow"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        self._used = False
        self.following = False

    def follow(self, journal: Path) -> None:
        self._used = self.following = True
        self._order(follow=str(journal.absolute()))

    def send(self, journal: Path) -> None:
        self._order(send=str(journal.absolute()))

    def finish(self) -> str | None:
        """As of `UploadThread`, for the run that it follows."""
        assert self._process.stdout is not None
        self.following = False
        self._order(finish=None)
        answer = self._process.stdout.readline()
        if not answer:
            return f"the process that sends ended with code {self._process.wait()}"
        return json.loads(answer)

    def end(self) -> None:
        """Ends it: at once before it has been given anything, else when it has told all."""
        if not self._used:
            self._process.kill()
        self._process.communicate()

    def _order(self, **order: str | None) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended; `finish` says so
            pass


_process: UploadProcess | None = None


def start_early() -> None:
    """Has a process import MLflow, unless this is one of several that torchrun started, and not the main one."""
    global _process
    if os.environ.get("RANK", "0") == "0":
        _process = UploadProcess()
        atexit.register(dismiss_early)


def dismiss_early() -> None:
    """For a command that turns out to track nothing itself, or no more: its process would hold MLflow for nothing."""
    global _process
    if _process is not None:
        _process.end()
        _process = None


def start(follow: Follow, journal: Path) -> UploadThread | UploadProcess:
    """Starts to send a journal."""
    if _process is None or _process.following:
        return UploadThread(follow, journal)
    _process.follow(journal)
    return _process


def send_beside(journals: list[Path]) -> bool:
    """Has the process that sends this process's run send other journals too; False where there is none."""
    if _process is None or not _process.following:
        return False
    for journal in journals:
        _process.send(journal)
    return True
