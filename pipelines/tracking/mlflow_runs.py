"""The only module that talks to MLflow: its client, the live run of a key, and searches.

Of all runs with one key one is live: making a run deletes those that were before. What is sent, and when, is decided in
`runs.py`; where it goes, in `stores.py`.
"""

import fcntl
import hashlib
import os
import posixpath
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.tracking.journal import JOURNALS, Entry, Header, Scores
from pipelines.tracking.masking import masked
from pipelines.tracking.stores import (
    artifacts_of,
    bypass_proxies,
    check_database,
    keep_beside,
    sqlite_path,
    tracking_uri,
)
from vapi_core.errors import FileError, ParameterError, VapiError

KEY_TAG = "dvc.key"
EXPERIMENT_TAG = "dvc.experiment"  # name of the DVC experiment in which a stage ran
SCORED_TAG = "dvc.scored"  # hash of the outputs that the scores of a run are of
OUTPUTS_TAG = "vapi.outputs"  # hash of the outputs that a version of a registered model has
WEIGHTS = "weights"  # folder of artifacts
SCORE = "score/"  # what the metrics begin with that other stages give to a run
PARENT_TAGS = ("mlflow.parentRunId", "parent_run_id")
MEMBER_TAG = "member."  # member.NAME: the run of a table or sweep of that name, of which there may be several
KIND = {"mlflow.experimentKind": "custom_model_development"}  # which pages MLflow shows: training, not GenAI
BATCH_METRICS, BATCH_PARAMS, LONGEST_PARAM = 1000, 100, 6000  # MLflow's limits of one log_batch
LONGEST_NAME = 250  # MLflow's limit


def valid_name(name: str) -> str:
    """A name of a metric, parameter or tag that MLflow takes: `name` itself if it does.

    MLflow (3.17, mlflow/utils/validation.py) wants letters, digits, _ - . : / and spaces, 250 at most, in what is a
    normalized relative path. In another name what it refuses is replaced by -, and a hash at the end keeps it apart
    from all others.
    """
    parts = [re.sub(r"[^\w.\- :]", "-", part) for part in name.split("/")]
    parts = [re.sub(r"\.", "-", part) or "-" if part in ("", ".", "..") else part for part in parts]
    valid = "/".join(parts)
    assert posixpath.normpath(valid) == valid
    if valid == name and len(name) <= LONGEST_NAME:
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{valid[: LONGEST_NAME - len(mark) - 1]} {mark}"


class MachineLoad:
    """MLflow's own measures of the machine: processor, memory, disk and network, and NVIDIA's GPUs where nvidia-ml-py
    is installed. MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false switches it off.

    It is asked by the process that sends, which has MLflow: a stage need not import it.
    """

    def __init__(self) -> None:
        self._monitors: list[Any] = []
        self._samples = 0
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("true", "1"):
            return
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with suppress(ImportError, RuntimeError):  # no nvidia-ml-py, no GPU
            self._monitors.append(GPUMonitor())

    def sample(self) -> Entry | None:
        """The load now, as metrics; None where it is switched off."""
        metrics: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            metrics |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        self._samples += 1
        return Entry(time.time_ns() // 1_000_000, self._samples, metrics) if metrics else None


def image_name(name: str) -> str:
    """A name of an image that MLflow takes and its files can hold: letters, digits, _ - . / and spaces."""
    return re.sub(r"[^a-zA-Z0-9_\-./ ]", "-", name)


def import_client() -> Any:
    """MLflow's client class, and the store that it needs for the tracking URI. Takes seconds."""
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # of every run that ends on a server
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default stalls for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    bypass_proxies(os.environ)
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    if sqlite_path(tracking_uri()) is not None:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 (what a client of a database imports when made)
    return MlflowClient


def connect() -> Any:
    """A client of the tracking server; a local database is initialised by one process at a time.

    Raises:
        ParameterError: MLFLOW_TRACKING_URI names a database that cannot be used.
    """
    MlflowClient, uri = import_client(), tracking_uri()
    database = sqlite_path(uri)
    check_database(uri)
    if database is None:
        return MlflowClient(uri)
    JOURNALS.mkdir(parents=True, exist_ok=True)
    with (JOURNALS / "database.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that create the tables at the same time fail
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        keep_beside(database)
    return client


def find_or_create_experiment(client: Any, name: str) -> str:
    """Id of the experiment, made or restored from the bin if need be; safe beside other processes."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            database = sqlite_path(tracking_uri())
            return client.create_experiment(name, database and artifacts_of(database, name), tags=KIND)
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    for tag, value in KIND.items():
        if tag not in experiment.tags:  # of an earlier version, or of a person
            client.set_experiment_tag(experiment.experiment_id, tag, value)
    return experiment.experiment_id


def live_runs(client: Any, experiment_id: str, key: str) -> list[Any]:
    """Runs of a key that are not deleted."""
    return client.search_runs([experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{key}'")


@contextmanager
def _needing_server() -> Iterator[None]:
    """For what makes no sense without the server. Raises ParameterError where it is away."""
    try:
        yield
    except VapiError:
        raise
    except Exception as error:  # whatever the client raises
        answer = f"{masked(tracking_uri())} does not answer as MLflow does: {summary(error)}"
        raise ParameterError("MLFLOW_TRACKING_URI", answer) from None


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


def metric_names(experiment: str) -> set[str]:
    """All metrics that the live runs of an experiment have."""
    return {name for run in find_runs(experiment, "") for name in run.data.metrics}


def keys_of_experiments(experiment: str, names: Iterable[str]) -> list[str]:
    """Keys of the alignments that these DVC experiments made."""
    wanted = set(names)
    runs = find_runs(experiment, "tags.stage = 'align'")
    return [run.data.tags[KEY_TAG] for run in runs if run.data.tags.get(EXPERIMENT_TAG) in wanted]


@_needing_server()
def name_experiment(experiment: str, key: str, name: str) -> None:
    """Tells the live run of a key, if there is one, that it is a part of this DVC experiment."""
    client = connect()
    for run in live_runs(client, find_or_create_experiment(client, experiment), key):
        client.set_tag(run.info.run_id, EXPERIMENT_TAG, name)


@_needing_server()
def register_weights(experiment: str, key: str, folder: Path, name: str, outputs: str) -> str:
    """Makes weights a version of a registered model, with the folder's files as artifacts of the run that trained them;
    returns the version, that which is there if these weights are registered.

    Args:
        key: of the run.
        outputs: hash of what is in the folder.

    Raises:
        ParameterError: the server is away or does not take the name.
        FileError: the run is gone.
    """
    from mlflow.exceptions import MlflowException

    client = connect()
    live = live_runs(client, find_or_create_experiment(client, experiment), key)
    if not live:
        raise FileError(folder, f"the run that made it is not in the experiment {experiment}.", "Send or make it anew.")
    run_id = live[0].info.run_id
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise ParameterError("--name", summary(error)) from None
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get(OUTPUTS_TAG) == outputs:
            return str(version.version)
    client.log_artifacts(run_id, str(folder), WEIGHTS)
    source = f"{live[0].info.artifact_uri}/{WEIGHTS}"
    made = client.create_model_version(name, source, run_id, tags={OUTPUTS_TAG: outputs})
    return str(made.version)


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
        folder: what the images of entries are relative to.
        replace: False: a live run is added to, if there is one.
    """

    def __init__(self, client: Any, header: Header, parent_key: str, folder: Path, *, replace: bool = True):
        self._client, self._header, self._folder = client, header, folder
        experiment_id = self._experiment_id = find_or_create_experiment(client, header.experiment)
        self._scored: tuple[str, dict[str, float]] = "", {}  # hash of outputs, scores of these, of the run before
        live = live_runs(client, experiment_id, header.key)
        self._added_to = bool(live) and not replace
        if self._added_to:
            self._run_id = self._only(live)
            return
        tags = {**header.tags, KEY_TAG: header.key}
        for old in live:
            kept = {
                name: tag for name, tag in old.data.tags.items() if name in PARENT_TAGS or name.startswith(MEMBER_TAG)
            }
            tags = kept | tags
            if outputs := old.data.tags.get(SCORED_TAG):
                self._scored = outputs, {n: v for n, v in old.data.metrics.items() if n.startswith(SCORE)}
            self._delete(old)
        if header.parent is not None:
            parent_id = self._parent(experiment_id, header.parent, parent_key)
            tags |= dict.fromkeys(PARENT_TAGS, parent_id)
        self._run_id = self._create(header.key, header.name, tags, header.start_time)
        from mlflow.entities import Param

        params = [Param(valid_name(name), value) for name, value in header.params.items()]
        with self._closed_if_refused():
            for start in range(0, len(params), BATCH_PARAMS):
                client.log_batch(self._run_id, params=params[start : start + BATCH_PARAMS])
            if header.dataset is not None:
                self._name_dataset(header.dataset)

    def _name_dataset(self, dataset: dict[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        context = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(self._run_id, [DatasetInput(Dataset(**dataset), [context])])

    def _create(self, key: str, name: str, tags: dict[str, str], start_time: int | None = None) -> str:
        """Makes the run of a key that has no live one. The server may make it and its reply be lost, whereupon the
        client asks for it once more: all but one of those made are deleted."""
        from mlflow.exceptions import MlflowException

        tags = {valid_name(name): value for name, value in tags.items()}
        made = None
        try:
            made = self._client.create_run(self._experiment_id, start_time=start_time, tags=tags, run_name=name)
        except MlflowException:
            live = live_runs(self._client, self._experiment_id, key)
            if not live:
                raise
        else:
            live = live_runs(self._client, self._experiment_id, key)
        return self._only(live or [made])

    def _only(self, live: list[Any]) -> str:
        """Deletes all but the first one; its id. The first one is the same for all who ask."""
        first, *others = sorted(live, key=lambda run: (run.info.start_time, run.info.run_id))
        for run in others:
            self._delete(run)
        return first.info.run_id

    def _delete(self, run: Any) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.delete_run(run.info.run_id)
        except MlflowException:  # it is deleted, and the reply was lost
            if is_live(self._client, run.info.run_id):
                raise

    def _parent(self, experiment_id: str, name: str, key: str) -> str:
        live = live_runs(self._client, experiment_id, key)
        if live:
            return self._only(live)
        run_id = self._create(key, name, {KEY_TAG: key})
        self._client.set_terminated(run_id, "FINISHED")
        return run_id

    def _adopt(self, key: str) -> None:
        for child in live_runs(self._client, self._experiment_id, key):
            child_id, tags = child.info.run_id, child.data.tags
            self._client.set_tag(child_id, valid_name(f"{MEMBER_TAG}{self._header.name}"), self._run_id)
            parent = tags.get("mlflow.parentRunId")
            if parent is None or not is_live(self._client, parent):
                for tag in PARENT_TAGS:
                    self._client.set_tag(child_id, tag, self._run_id)

    def send(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(valid_name(name), value, e.time, e.step) for e in entries for name, value in e.metrics.items()
        ]
        with self._closed_if_refused():
            for start in range(0, len(metrics), BATCH_METRICS):
                self._client.log_batch(self._run_id, metrics=metrics[start : start + BATCH_METRICS])
            newest = {file: e for e in entries for file in e.images.values()}  # one drawn anew has the file of before
            for e in entries:
                for name, file in e.images.items():
                    if newest[file] is e:
                        self._send_image(name, self._folder / file, e)

    def _send_image(self, name: str, path: Path, entry: Entry) -> None:
        """A picture of a step. One that somebody has removed meanwhile is passed over, as an artifact is."""
        from PIL import Image

        if path.is_file():
            with Image.open(path) as image:
                self._client.log_image(
                    self._run_id, image, key=image_name(name), step=entry.step, timestamp=entry.time, synchronous=True
                )

    def close(self, state: dict[str, Any], scores: Iterable[Scores] = ()) -> None:
        """Sends what belongs to a run at its end: artifacts, tables, scores of its outputs; then closes it."""
        with self._closed_if_refused():
            for path in state["artifacts"]:
                if Path(path).is_file():
                    self._client.log_artifact(self._run_id, path)
            for name, rows in state.get("tables", {}).items():
                columns = {column: [row.get(column) for row in rows] for column in rows[0]} if rows else {}
                self._client.log_table(self._run_id, columns, f"{name}.json")
            self._send_scores(state, list(scores))
            for key in state.get("children", []):
                self._adopt(key)
        if state["status"] != "RUNNING" and not self._added_to:
            self._client.set_terminated(self._run_id, state["status"], state["end_time"])

    def _send_scores(self, state: dict[str, Any], scores: list[Scores]) -> None:
        """Scores are of outputs: those that the journal lacks are taken from the run before if it had the same ones."""
        outputs = state.get("outputs")
        if outputs is None or state["status"] != "FINISHED":
            return
        found = [s for s in scores if s.outputs == outputs]
        if not found and self._scored[0] == outputs:
            found = [Scores(state["end_time"], *self._scored)]
        run = self._client.get_run(self._run_id) if self._added_to else None
        known = run.data.metrics if run else {}
        metrics = {name: (s.time, value) for s in found for name, value in s.metrics.items()}
        new = {n: tv for n, tv in metrics.items() if known.get(valid_name(n)) != tv[1]}
        self.send([Entry(time, 0, {name: value}) for name, (time, value) in new.items()])
        told = self._image_steps() if run and run.data.tags.get(SCORED_TAG) == outputs else set()
        images = [e for s in found for e in s.images if not {(image_name(n), e.step) for n in e.images} <= told]
        self.send(images)
        if found:
            self._client.set_tag(self._run_id, SCORED_TAG, outputs)

    def _image_steps(self) -> set[tuple[str, int]]:
        """Names and steps of the run's images. MLflow keeps both in the names of files: NAME+step+STEP+timestamp+..."""
        parts = [Path(f.path).name.split("+") for f in self._client.list_artifacts(self._run_id, "images")]
        return {(name.replace("~", "/"), int(step)) for name, _, step, *_ in parts}

    @contextmanager
    def _closed_if_refused(self) -> Iterator[None]:
        """What MLflow does not take is no reason for a run that stays open for ever."""
        try:
            yield
        except Exception as error:
            if is_refused(error):
                self._client.set_terminated(self._run_id, "FAILED")
            raise


def is_refused(error: Exception) -> bool:
    """Whether MLflow is there and does not take what it was given, by its own account."""
    return getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def summary(error: Exception) -> str:
    """An error of MLflow's client, which may be pages long, in one line without passwords."""
    name = "" if isinstance(error, VapiError) else f"{type(error).__name__}: "
    return masked(f"{name}{error}".splitlines()[0])[:200]
