"""The only module that talks to MLflow: one live run per key, whatever happened before.

A run's key is a hash of its stage, its parameters and the keys of its upstream; a stage that runs replaces the live run
of the same key, and a stage that DVC takes from its cache leaves the run that made it in place. Metrics go to a journal
(see `journal.py`) and from there, in batches, to MLflow, beside the stage's own work (see `uploader.py`). Where the
server is away the stage goes on; `python -m pipelines.tracking upload` sends the journals later.

Default store: `sqlite:///mlflow.db` in the working directory; MLFLOW_TRACKING_URI is honoured.
"""

import argparse
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines import uploader
from pipelines.journal import Entry, Header, Journal, Status, all_journals
from pipelines.paths import WORK
from vapi_core.errors import ParameterError

JOURNALS = WORK / "tracking"
DEFAULT_URI = "sqlite:///mlflow.db"
KEY_TAG = "dvc.key"
EXPERIMENT_TAG = "dvc.experiment"  # name of the DVC experiment in which a stage ran
PARENT_TAGS = ("mlflow.parentRunId", "parent_run_id")
MEMBER_TAG = "member."  # member.NAME: the run of a table or sweep of that name, of which there may be several
FLUSH_SECONDS = 5.0
BATCH_METRICS, BATCH_PARAMS, LONGEST_PARAM = 1000, 100, 6000  # MLflow's limits of one log_batch
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
        run, sent = RemoteRun(client, journal.header()), 0
        while True:
            last = over(FLUSH_SECONDS)
            entries = journal.entries()
            run.send(entries[sent:])
            sent = len(entries)
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


def upload(journals: list[Journal]) -> str | None:
    """Sends whole journals, each replacing the live run of its key; returns what went wrong, None if nothing did."""
    try:
        client = connect()
        for journal in journals:
            run = RemoteRun(client, journal.header())
            run.send(journal.entries())
            run.close(journal.state())
            journal.update(uploaded=True)
            print(f"sent {journal.header().name}", file=sys.stderr)
    except Exception as error:  # as above
        return summary(error)
    return None


def summary(error: Exception) -> str:
    """An error of MLflow's client, which may be pages long, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


class RemoteRun:
    """A run in MLflow, made to be the only live one of its key."""

    def __init__(self, client: Any, header: Header):
        self._client, self._header = client, header
        experiment_id = self._experiment_id = find_or_create_experiment(client, header.experiment)
        tags = {**header.tags, KEY_TAG: header.key}
        for old in live_runs(client, experiment_id, header.key):
            kept = {
                name: tag for name, tag in old.data.tags.items() if name in PARENT_TAGS or name.startswith(MEMBER_TAG)
            }
            tags = kept | tags
            client.delete_run(old.info.run_id)
        if header.parent is not None:
            parent_id = self._parent(experiment_id, header)
            tags |= dict.fromkeys(PARENT_TAGS, parent_id)
        self._run_id = client.create_run(
            experiment_id, start_time=header.start_time, tags=tags, run_name=header.name
        ).info.run_id
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in header.params.items()]
        for start in range(0, len(params), BATCH_PARAMS):
            client.log_batch(self._run_id, params=params[start : start + BATCH_PARAMS])

    def _parent(self, experiment_id: str, header: Header) -> str:
        assert header.parent is not None
        key = parent_key(header.experiment, header.parent)
        live = live_runs(self._client, experiment_id, key)
        if live:
            return live[0].info.run_id
        run = self._client.create_run(experiment_id, tags={KEY_TAG: key}, run_name=header.parent)
        self._client.set_terminated(run.info.run_id, "FINISHED")
        return run.info.run_id

    def _adopt(self, key: str) -> None:
        for child in live_runs(self._client, self._experiment_id, key):
            child_id, tags = child.info.run_id, child.data.tags
            self._client.set_tag(child_id, f"{MEMBER_TAG}{self._header.name}", self._run_id)
            parent = tags.get("mlflow.parentRunId")
            if parent is None or not is_live(self._client, parent):
                for tag in PARENT_TAGS:
                    self._client.set_tag(child_id, tag, self._run_id)

    def send(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, e.time, e.step) for e in entries for name, value in e.metrics.items()]
        for start in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + BATCH_METRICS])

    def close(self, state: dict[str, Any]) -> None:
        for path in state["artifacts"]:
            if Path(path).is_file():
                self._client.log_artifact(self._run_id, path)
        for name, rows in state.get("tables", {}).items():
            columns = {column: [row.get(column) for row in rows] for column in rows[0]} if rows else {}
            self._client.log_table(self._run_id, columns, f"{name}.json")
        for key in state.get("children", []):
            self._adopt(key)
        if state["status"] != "RUNNING":
            self._client.set_terminated(self._run_id, state["status"], state["end_time"])


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI)


def import_client() -> Any:
    """MLflow's client class, and the store that it needs for the tracking URI. Takes seconds."""
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default stalls for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    if tracking_uri().startswith("sqlite:"):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 (what a client of a database imports when made)
    return MlflowClient


def connect() -> Any:
    """A client of the tracking server; a local database is initialised by one process at a time."""
    MlflowClient, uri = import_client(), tracking_uri()
    if not uri.startswith("sqlite:"):
        return MlflowClient(uri)
    JOURNALS.mkdir(parents=True, exist_ok=True)
    with (JOURNALS / "database.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that create the tables at the same time fail
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def find_or_create_experiment(client: Any, name: str) -> str:
    """Id of the experiment, made or restored from the bin if need be; safe beside other processes."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name)
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def live_runs(client: Any, experiment_id: str, key: str) -> list[Any]:
    """Runs of a key that are not deleted."""
    return client.search_runs([experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{key}'")


@contextmanager
def _needing_server() -> Iterator[None]:
    """For what makes no sense without the server. Raises ParameterError where it is away."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        answer = f"{tracking_uri()} does not answer as MLflow does: {summary(error)}"
        raise ParameterError("MLFLOW_TRACKING_URI", answer) from error


@_needing_server()
def find_runs(experiment: str, selection: str) -> list[Any]:
    """Live runs of an experiment that a filter of MLflow's selects; none where there is no such experiment."""
    client = connect()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    runs = page = client.search_runs([found.experiment_id], filter_string=selection)
    while page.token:
        page = client.search_runs([found.experiment_id], filter_string=selection, page_token=page.token)
        runs = [*runs, *page]
    return list(runs)


def keys_of_experiments(experiment: str, names: Iterable[str]) -> list[str]:
    """Keys of the runs of stage `cell` that these DVC experiments made."""
    wanted = set(names)
    runs = find_runs(experiment, "tags.stage = 'cell'")
    return [run.data.tags[KEY_TAG] for run in runs if run.data.tags.get(EXPERIMENT_TAG) in wanted]


@_needing_server()
def name_experiment(experiment: str, key: str, name: str) -> None:
    """Tells the live run of a key, if there is one, that it is a part of this DVC experiment."""
    client = connect()
    for run in live_runs(client, find_or_create_experiment(client, experiment), key):
        client.set_tag(run.info.run_id, EXPERIMENT_TAG, name)


@_needing_server()
def register_view(experiment: str, key: str, view: str) -> str:
    """Keeps a view of an experiment's runs under a key of its URL; returns the experiment's id."""
    client = connect()
    experiment_id = find_or_create_experiment(client, experiment)
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{key}", view)
    return experiment_id


def is_live(client: Any, run_id: str) -> bool:
    """Whether a run is there and not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _git_commit() -> dict[str, str]:
    result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {"git.commit": result.stdout.strip()} if result.returncode == 0 else {}


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
    main()
