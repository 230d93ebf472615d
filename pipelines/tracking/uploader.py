"""What sends a run's journal to MLflow while its stage works: a process beside a stage's command, else a thread.

Importing MLflow takes as long as importing torch, and one process does both one after the other. So a stage that is run as a
command has a process import MLflow from its first moment (`start_early`). Where nobody has called for that, in tests and
in commands that need MLflow themselves, a thread sends.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

Follow = Callable[[Path, Callable[[float], bool]], str | None]  # `pipelines.tracking.follow`


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
    """Sends from `python -m pipelines.tracking follow`, which reads directories of journals from its standard input: the
    first is followed until the input ends, the others are sent whole. It is out of reach of Ctrl-C, and ends with this process.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-m", "pipelines.tracking", "follow"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)

    def send(self, *journals: Path) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.writelines(f"{journal.absolute()}\n" for journal in journals)
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended; `finish` says so
            pass

    def finish(self) -> str | None:
        """As of `UploadThread`."""
        global _in_use
        _in_use = None
        try:
            answer, _ = self._process.communicate()
        except BrokenPipeError:
            answer = ""
        if not answer:
            return f"the process that sends ended with code {self._process.wait()}"
        return json.loads(answer.splitlines()[-1])

    def dismiss(self) -> None:
        """Ends it before it has been given anything."""
        self._process.kill()
        self._process.communicate()


_early: UploadProcess | None = None  # started and not yet asked for
_in_use: UploadProcess | None = None


def start_early() -> None:
    """Has a process import MLflow, unless this is one of several that torchrun started, and not the main one."""
    global _early
    if os.environ.get("RANK", "0") == "0":
        _early = UploadProcess()


def dismiss_early() -> None:
    """For a command that turns out to track nothing itself: its process would hold MLflow for nothing."""
    global _early
    if _early is not None:
        _early.dismiss()
        _early = None


def start(follow: Follow, journal: Path) -> UploadThread | UploadProcess:
    """Starts to send a journal."""
    global _early, _in_use
    if _early is None:
        return UploadThread(follow, journal)
    _in_use, _early = _early, None
    _in_use.send(journal)
    return _in_use


def send_beside(journals: list[Path]) -> bool:
    """Has the process that sends this process's run send other journals too; False where there is none."""
    if _in_use is None:
        return False
    _in_use.send(*journals)
    return True
