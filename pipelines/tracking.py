"""What stages report, and how it comes to MLflow: one live run per key, whatever happened before.

A run's key is a hash of its stage, its parameters and the keys of its upstream; a stage that runs replaces the live run
of the same key, and a stage that DVC takes from its cache leaves the run that made it in place. Metrics go to a journal
(see `journal.py`) and from there, in batches, to MLflow, beside the stage's own work (see `uploader.py`). Where the
server is away the stage goes on; `python -m pipelines.tracking upload` sends the journals later. MLflow itself is the
business of `mlflow_runs.py`.
"""

import argparse
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines import uploader
from pipelines.git import git
from pipelines.journal import JOURNALS, Entry, Header, Journal, Status, all_journals
from pipelines.launch import one_message
from pipelines.mlflow_runs import EXPERIMENT_TAG, LONGEST_PARAM, RemoteRun, connect, import_client, summary
from vapi_core.errors import FileError

FLUSH_SECONDS = 5.0
UPLOAD_COMMAND = "python -m pipelines.tracking upload"


def stage_key(stage: str, params: dict[str, Any], upstream: Iterable[str]) -> str:
    """Identity of a run: hash of its stage, all parameters that determine it, and the keys of what it builds on."""
    content = json.dumps([stage, params, sorted(upstream)], sort_keys=True, default=list)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def parent_key(experiment: str, parent: str) -> str:
    """Identity of a parent run, which has no result of its own."""
    return stage_key("parent", {"experiment": experiment, "name": parent}, [])


def flatten(params: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names and text, as MLflow wants them."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)[:LONGEST_PARAM]
    return flat


class StageRun:
    """What a stage reports to, from the process of rank 0."""

    def __init__(self, journal: Journal, header: Header):
        self._journal = journal
        self._artifacts: list[str] = []
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._children: list[str] = []
        journal.begin(header)
        self._uploader = uploader.start(follow, journal.directory)

    def log(self, metrics: dict[str, float], step: int = 0) -> None:
        """Reports metrics of one step."""
        self._journal.append(Entry(now(), step, {name: float(value) for name, value in metrics.items()}))

    def artifact(self, path: Path) -> None:
        """Attaches a file, sent when the run ends."""
        self._artifacts.append(str(path))
        self._journal.update(artifacts=self._artifacts)

    def table(self, name: str, rows: list[dict[Any, Any]]) -> None:
        """Attaches a table, which MLflow shows as one, sent when the run ends."""
        self._tables[name] = rows
        self._journal.update(tables=self._tables)

    def adopt(self, keys: list[str]) -> None:
        """Makes this run the parent of the runs of these keys when it ends; one that has a parent gets a link only."""
        self._children += keys
        self._journal.update(children=self._children)

    def end(self, status: Status) -> None:
        """Sends what is left and closes the run."""
        self._journal.update(status=status, end_time=now())
        problem = self._uploader.finish()
        if problem is None:
            self._journal.update(uploaded=True)
        else:
            print(
                f"warning: the tracking server is away ({problem}). The metrics are kept in {self._journal.directory}; "
                f"to send them later: {UPLOAD_COMMAND}",
                file=sys.stderr,
            )


def follow(directory: Path, over: Callable[[float], bool]) -> str | None:
    """Creates the run of a journal, sends what comes, and closes it; returns what went wrong, None if nothing did.

    One failure ends it: no stall at each flush.

    Args:
        over: waits so many seconds, or until nothing more will come, and says whether it is so.
    """
    journal = Journal(directory.parent, directory.name)
    try:
        client = connect()
        if over(0.0) and journal.state()["status"] == "RUNNING":
            return "the stage was killed"  # its next attempt may have begun: a run made now would be a second one
        run, sent = remote_run(client, journal), 0
        while True:
            last = over(FLUSH_SECONDS)
            entries, sent = journal.entries(sent)
            run.send(entries)
            if last:
                run.close(journal.state())
                return None
    except Exception as error:  # whatever the client raises, the stage's result is not its business
        return summary(error)


@contextmanager
def stage_run(
    *, experiment: str, name: str, key: str, params: dict[str, Any], tags: dict[str, str], parent: str | None = None
) -> Iterator[StageRun]:
    """A run for the duration of a block: FINISHED at its end, FAILED on an error, KILLED on an interrupt."""
    start = now()
    if experiment_name := os.environ.get("DVC_EXP_NAME"):
        tags = {**tags, EXPERIMENT_TAG: experiment_name}
    tags = {**tags, **_git_commit()}
    run = StageRun(Journal(JOURNALS, key), Header(experiment, name, key, start, flatten(params), tags, parent))
    try:
        yield run
    except KeyboardInterrupt:
        run.end("KILLED")
        raise
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")


def add_scores(scores: dict[str, dict[str, float]], headers: dict[str, Header]) -> None:
    """Adds final scores to the runs of other stages.

    Args:
        scores: key of a run -> its scores.
        headers: key -> what to make the run of where neither a live run nor a journal of it is left.
    """
    waiting: list[Journal] = []
    for key, metrics in scores.items():
        journal = Journal(JOURNALS, key)
        if not journal.exists:
            journal.begin(headers[key])
            journal.update(status="FINISHED", end_time=now())
        journal.append(Entry(now(), 0, metrics))
        journal.update(uploaded=False)
        waiting.append(journal)
    if uploader.send_beside([journal.directory for journal in waiting]):
        return
    warn_of_scores(upload(waiting))


def warn_of_scores(problem: str | None) -> None:
    if problem is not None:
        print(
            f"warning: the tracking server is away ({problem}). To send the scores later: {UPLOAD_COMMAND}",
            file=sys.stderr,
        )


def remote_run(client: Any, journal: Journal) -> RemoteRun:
    """The run of a journal, made anew."""
    header = journal.header()
    return RemoteRun(client, header, parent_key(header.experiment, header.parent or ""))


def upload(journals: list[Journal]) -> str | None:
    """Sends whole journals, each replacing the live run of its key; returns what went wrong, None if nothing did."""
    try:
        client = connect()
        for journal in journals:
            run = remote_run(client, journal)
            run.send(journal.entries()[0])
            run.close(journal.state())
            journal.update(uploaded=True)
            print(f"sent {journal.header().name}", file=sys.stderr)
    except Exception as error:  # as above
        return summary(error)
    return None


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _git_commit() -> dict[str, str]:
    with suppress(FileError):  # a run need not have one
        return (
            {"git.commit": commit}
            if (commit := git(Path(), "rev-parse", "--verify", "--quiet", "HEAD").strip())
            else {}
        )
    return {}


def serve() -> None:
    """The other side of `uploader.UploadProcess`: follows the first journal, sends the others, and prints what went wrong."""
    import_client()
    first = sys.stdin.readline().strip()
    if not first:  # the stage has ended without a run
        return
    others: list[str] = []
    over = threading.Event()

    def listen() -> None:
        others.extend(line.strip() for line in sys.stdin)
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    problem = follow(Path(first), over.wait)
    warn_of_scores(upload([Journal(path.parent, path.name) for path in map(Path, others)]) if others else None)
    with suppress(BrokenPipeError):  # the stage was killed
        print(json.dumps(problem), flush=True)


@one_message
def main() -> None:
    parser = argparse.ArgumentParser(description="Sends metrics that were kept while the tracking server was away.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="upload")
    commands.add_parser("upload", help="sends what is not sent yet")
    commands.add_parser("follow")  # for stages: sends while they work
    if parser.parse_args().command == "follow":
        serve()
        return
    states = [(journal, journal.state()) for journal in all_journals(JOURNALS)]
    # one that is RUNNING belongs to a stage at work, or was killed and is replaced by the next attempt
    problem = upload([journal for journal, s in states if not s["uploaded"] and s["status"] != "RUNNING"])
    if problem is not None:
        sys.exit(f"error: the tracking server is still away: {problem}")


if __name__ == "__main__":
    sys.exit(main())
