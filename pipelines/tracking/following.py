"""The process beside a stage: sends the journals that `uploader.UploadProcess` names, one run after the other."""

import json
import signal
import sys
import threading
from collections.abc import Iterable
from contextlib import redirect_stdout, suppress
from queue import Queue

from pipelines.tracking.journal import Journal
from pipelines.tracking.mlflow_runs import import_client
from pipelines.tracking.runs import KILLED, SCORES_LATER, follow, journal_of, report, upload


class Orders:
    """What `uploader.UploadProcess` writes, read as it comes."""

    def __init__(self, lines: Iterable[str]):
        self._runs: Queue[Journal | None] = Queue()
        self._others: list[Journal] = []
        self.over = threading.Event()  # of the run that is followed: it has ended, or its process has
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()

    def _listen(self, lines: Iterable[str]) -> None:
        for line in lines:
            ((order, path),) = json.loads(line).items()
            if order == "follow":
                self._runs.put(journal_of(path))
            elif order == "send":
                self._others.append(journal_of(path))
            else:
                self.over.set()
        self._runs.put(None)
        self.over.set()

    def next_run(self) -> Journal | None:
        """The journal that is to be followed next; None: no other will come."""
        return self._runs.get()

    def ended(self) -> list[Journal]:
        """Waits for the end of the run that is followed; what is to be sent beside it."""
        self.over.wait()
        self.over.clear()  # before the answer: the next run begins after it
        others, self._others = self._others, []
        return others


def serve() -> None:
    """The other side of `uploader.UploadProcess`: follows one journal after the other, and answers what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ends when its input does; until then there may be a run to close
    orders, answers = Orders(sys.stdin), sys.stdout
    with redirect_stdout(sys.stderr):  # what MLflow prints is no answer
        import_client()
        while (journal := orders.next_run()) is not None:
            state, name = journal.state(), journal.header().name
            problem = follow(journal.directory, orders.over.wait)
            if others := orders.ended():
                report(upload(others), SCORES_LATER)
            if problem == KILLED:
                print(words_for_killed(name, state.get("advice", "")), file=sys.stderr)
            with suppress(BrokenPipeError):  # the stage was killed
                print(json.dumps(problem), file=answers, flush=True)


def words_for_killed(name: str, advice: str) -> str:
    """What is told of a stage whose process ended without a word, by the process beside it, which is not told why."""
    told = f"error: stage {name} ended without a word: it was killed."
    return f"{told} If that was for want of memory (the kernel's log says so): {advice}" if advice else told
