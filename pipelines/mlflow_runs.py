"""The only module that talks to MLflow: its client, the live run of a key, and searches.

Of all runs with one key one is live: making a run deletes those that were before. What is sent, and when, is decided in
`tracking.py`.

Default store: `sqlite:///mlflow.db` in the working directory; MLFLOW_TRACKING_URI is honoured.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.journal import JOURNALS, Entry, Header
from vapi_core.errors import ParameterError

DEFAULT_URI = "sqlite:///mlflow.db"
KEY_TAG = "dvc.key"
EXPERIMENT_TAG = "dvc.experiment"  # name of the DVC experiment in which a stage ran
PARENT_TAGS = ("mlflow.parentRunId", "parent_run_id")
MEMBER_TAG = "member."  # member.NAME: the run of a table or sweep of that name, of which there may be several
BATCH_METRICS, BATCH_PARAMS, LONGEST_PARAM = 1000, 100, 6000  # MLflow's limits of one log_batch


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


class RemoteRun:
    """A run in MLflow, made to be the only live one of its key.

    Args:
        parent_key: of the run below which it stands, if `header` names one.
    """

    def __init__(self, client: Any, header: Header, parent_key: str):
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
            parent_id = self._parent(experiment_id, header.parent, parent_key)
            tags |= dict.fromkeys(PARENT_TAGS, parent_id)
        self._run_id = client.create_run(
            experiment_id, start_time=header.start_time, tags=tags, run_name=header.name
        ).info.run_id
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in header.params.items()]
        for start in range(0, len(params), BATCH_PARAMS):
            client.log_batch(self._run_id, params=params[start : start + BATCH_PARAMS])

    def _parent(self, experiment_id: str, name: str, key: str) -> str:
        live = live_runs(self._client, experiment_id, key)
        if live:
            return live[0].info.run_id
        run = self._client.create_run(experiment_id, tags={KEY_TAG: key}, run_name=name)
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


def summary(error: Exception) -> str:
    """An error of MLflow's client, which may be pages long, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
