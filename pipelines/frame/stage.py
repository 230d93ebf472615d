"""The frame around every DVC stage: typed params, device, tracking, metrics, errors. The stages themselves are thin.

A stage that is `parallel` runs on as many processes as `launch` says; its work is done by all of them, what
is here by the main one.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config.assets import link_assets, require_assets
from pipelines.config.loading import load_params
from pipelines.config.params import Params
from pipelines.config.paths import CURVES, REPORTS, RUN_FILE, STAGE_METRICS, SUBSET, WORK, remedy
from pipelines.estimates.space import require_space
from pipelines.frame.launch import live_with_launcher, relaunch
from pipelines.frame.memory_advice import memory_advice, memory_explained
from pipelines.frame.progress import Advance, progress
from pipelines.messages import one_message
from pipelines.processes import only_one
from pipelines.tracking.runs import StageRun, stage_key, stage_run
from pipelines.tracking.uploader import dismiss_early
from vapi_core import distributed
from vapi_core.arrays import MANIFEST
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import (
    atomic_path,
    read_texts,
    remove_leftovers_below,
    remove_whole,
    sha256_file,
    write_json,
)
from vapi_core.fingerprint import fingerprint, training_code
from vapi_core.memory import KEPT_BYTES, give_back_from

Metrics = dict[str, float]
LONGEST_DIGEST = 36  # of MLflow's data sets
DVC_TEMPORARY = re.compile(r"\.[\w-]{22}\.tmp")  # dvc_objects.fs.utils.tmp_fname


@dataclass(frozen=True)
class StagePlan:
    """What identifies a stage's run, known before any work."""

    name: str  # as in dvc.yaml, e.g. "tokenizer" or "align@va-pi-0"
    output: Path | None  # directory the stage writes, whose run.json names the run; None: nothing builds on it
    params: dict[str, Any]  # all parameters that determine the result
    upstream: tuple[Path, ...] = ()  # output directories of the stages it builds on
    parent: str | None = (
        "pipeline"  # MLflow run under which this one stands; None: at the top, beside what it competes with
    )
    tracked: bool = True  # False: it has no run of its own; its work makes the runs


class UntrackedRun:
    """What processes other than the main one report to: nobody."""

    def log(self, metrics: Metrics, step: int = 0) -> None:
        pass

    def image(self, name: str, path: Path, step: int) -> None:
        pass

    def artifact(self, path: Path) -> None:
        pass

    def table(self, name: str, rows: list[dict[Any, Any]]) -> None:
        pass

    def made(self, outputs: str) -> None:
        pass

    def adopt(self, keys: list[str]) -> None:
        pass


@dataclass
class Stage:
    """What a stage's work gets."""

    plan: StagePlan
    params: Params
    device: Any  # torch.device
    run: StageRun | UntrackedRun
    key: str
    metrics: Metrics = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """Directory the stage writes."""
        assert self.plan.output is not None
        return self.plan.output

    @property
    def dtype(self) -> Any:
        """The torch.dtype of `launch.dtype`."""
        import torch

        return getattr(torch, self.params.launch.dtype)

    @property
    def checkpoint(self) -> Path:
        """Where a training stage keeps resumable states and what else it needs; removed once the output is whole."""
        return WORK / "checkpoints" / f"{self.plan.name}-{self.key}"

    @property
    def fingerprint(self) -> str:
        """Of all that a training comes from. The key does not know what the inputs hold, nor the code: a checkpoint
        that other ones made would be gone on with to a result that no uninterrupted run has."""
        return fingerprint(self.key, code=training_code(), files=descriptions(self.plan.upstream))

    @property
    def curves(self) -> Path:
        """File of the curves of a stage that trains one model."""
        return CURVES / f"{self.plan.name}.csv"

    @contextmanager
    def training_log(self, steps: int, images_per_step: int) -> Iterator["TrainingLog"]:
        """The log of a stage that trains one model; its rate becomes a metric of the stage."""
        with training_log(self.plan.name, steps, images_per_step, self.run, self.curves) as log:
            yield log
        if distributed.is_main():
            self.metrics["images_per_second"] = log.images_per_second

    def skip_training(self) -> None:
        """Writes curves without a step, where a model is imported or not needed: DVC wants every output."""
        write_curves(self.curves, [])

    def own_run(self, name: str, key: str, params: dict[str, Any], tags: dict[str, str]) -> Any:
        """A run of something in the stage's work, at the top of the profile's runs; for the main process."""
        if not distributed.is_main():
            return nullcontext(UntrackedRun())
        tags = {"profile": self.params.profile, **tags}
        advice = memory_advice(self.params, self.plan.name)
        return stage_run(
            experiment=self.params.profile,
            name=name,
            key=key,
            params=params,
            tags=tags,
            advice=advice,
            dataset=data_set(self.params),
        )


class TrainingLog:
    """What a training reports each step to: progress, curves of the run, and rows for a file.

    The rows hold what is the same on every run of the same machine; the rate goes to the run alone.
    """

    def __init__(self, images_per_step: int, run: StageRun | UntrackedRun, advance: Advance):
        self.rows: list[Metrics] = []
        self._images_per_step, self._run, self._advance = images_per_step, run, advance
        self._started = self._previous = time.monotonic()
        self._resumed = 0

    def __call__(self, step: int, row: Metrics) -> None:
        now = time.monotonic()
        self.rows.append({"step": step + 1, **row})
        live = {f"train/{name}": value for name, value in row.items()}
        if now - self._previous > 1e-3:  # steps before a resumed checkpoint are only told again
            live["train/images_per_second"] = self._images_per_step / (now - self._previous)
        else:
            self._resumed = step + 1
        self._previous = now
        self._run.log(live, step=step + 1)
        self._advance(note=f"loss {row['loss']:.4g}")

    @property
    def images_per_second(self) -> float:
        """Mean rate over the steps that were made here, up to the last one."""
        seconds = max(self._previous - self._started, 1e-9)
        return (len(self.rows) - self._resumed) * self._images_per_step / seconds


@contextmanager
def training_log(
    name: str, steps: int, images_per_step: int, run: StageRun | UntrackedRun, path: Path
) -> Iterator[TrainingLog]:
    """The log of a training; at its end the main process writes the curves to a file."""
    with progress(name, steps, "steps") as advance:
        log = TrainingLog(images_per_step, run, advance)
        yield log
    if distributed.is_main():
        write_curves(path, log.rows)


def descriptions(folders: Iterable[Path]) -> list[Path]:
    """The JSON files in outputs of stages, which hold the hashes of all else there; not those that name a run."""
    files = [path for folder in folders for path in sorted(folder.rglob("*"))]
    return [path for path in files if path.suffix in (".json", ".jsonl") and path.name != RUN_FILE]


def write_curves(path: Path, rows: list[Metrics]) -> None:
    """One line per step; a metric that some steps lack is empty there."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["step", "loss", "mse"]
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)


def outputs_hash(folder: Path) -> str:
    """Of what a stage has made: of its manifests, which have the hashes of all. Which run made it does not count."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.json")):
        if path.name != RUN_FILE:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def upstream_keys(plan: StagePlan) -> list[str]:
    """Keys of the runs that made this stage's inputs."""
    return [read_texts(d / RUN_FILE, ["key"], remedy(d))["key"] for d in plan.upstream]


def metric_name(name: str) -> str:
    """What MLflow calls a metric of a stage: scores as they are, others below `stage`; without spaces."""
    return name if "/" in name else f"stage/{name.replace(' ', '/')}"


def data_set(params: Params) -> dict[str, str] | None:
    """The images of the run, as MLflow names a data set (`Header.dataset`); None before they are chosen."""
    if not (SUBSET / MANIFEST).is_file():
        return None
    images = params.subset
    return {
        "name": Path(images.path).name if images.path else images.source,
        "digest": sha256_file(SUBSET / MANIFEST)[:LONGEST_DIGEST],
        "source_type": "local",
        "source": json.dumps({"uri": images.path or images.source}),
        "profile": json.dumps({"image_size": images.image_size, "seed": images.seed, **images.splits}),
    }


@one_message
def run_stage(
    plan: Callable[[Params, argparse.Namespace], StagePlan],
    work: Callable[[Stage, argparse.Namespace], None],
    arguments: argparse.Namespace,
    *,
    parallel: bool = False,
) -> int:
    """Runs one stage; returns its exit code, as `one_message` has it.

    Args:
        parallel: whether `work` shares its work out to `launch.processes` processes, as `vapi_core.distributed` has
            them. The stage then starts itself again under torchrun, unless torchrun has started it.
    """
    params = load_params()
    stage_plan = plan(params, arguments)
    link_assets(params)
    require_assets(params, stage_plan.name)
    require_space(params, stage_plan.name)
    key = stage_key(stage_plan.name, stage_plan.params, upstream_keys(stage_plan))
    if distributed.launched():
        live_with_launcher()
        _check_launch(params, parallel)
        _execute(stage_plan, key, work, params, arguments)
        return 0
    with _alone(stage_plan.name, key):
        if parallel and params.launch.world_size > 1:
            dismiss_early()  # the main one of the processes has its own
            return relaunch(params.launch.processes, params.launch.nodes)
        _execute(stage_plan, key, work, params, arguments)
        return 0


@contextmanager
def _alone(name: str, key: str) -> Iterator[None]:
    """Waits until no other process runs this stage in this folder, or one of its key in any: they share a checkpoint.

    Such a one may have outlived its DVC for a moment, or be a cell of a sweep in another folder.
    """

    def waits(holder: str) -> None:
        print(
            f"{name} waits for process {holder or 'unknown'}, which runs the same stage.", file=sys.stderr, flush=True
        )

    folder = hashlib.sha256(str(Path.cwd()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    with only_one(f"{name}-{folder}", waits), only_one(f"{name}-{key}", waits):
        yield


def _check_launch(params: Params, parallel: bool) -> None:
    started, expected = int(os.environ["WORLD_SIZE"]), params.launch.world_size if parallel else 1
    if started != expected:
        known = f"torchrun started {started} processes; this stage runs on {expected}."
        raise ParameterError("launch.processes", known)


def remove_dvc_leftovers(folder: Path) -> None:
    """Removes the temporaries of a DVC that was killed. The DVC that started this stage has none while it waits."""
    for path in folder.rglob(".*.tmp"):
        if DVC_TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _execute(plan: StagePlan, key: str, work: Any, params: Params, arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    device = _prepare_torch(params)
    if distributed.is_main():
        remove_leftovers_below(WORK)  # of stages that were killed
        remove_dvc_leftovers(REPORTS)
    with _tracked_run(plan, key, params) as run:
        stage = Stage(plan, params, device, run, key)
        try:
            with memory_explained(params, plan.name):
                work(stage, arguments)
        except BaseException:
            if distributed.launched():  # torchrun ends all when one fails; the run is still to be closed
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise
        is_main = distributed.is_main()  # of the group, which ends here: without one every process is
        distributed.stop()
        stage.metrics["seconds"] = time.monotonic() - started
        stage.metrics["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            1024 if sys.platform == "linux" else 1024**2
        )
        if plan.output is not None and is_main:
            run.made(outputs_hash(plan.output))
        run.log({metric_name(name): value for name, value in stage.metrics.items()})
    if not is_main:
        return
    if plan.output is not None:
        plan.output.mkdir(parents=True, exist_ok=True)
        write_json(plan.output / RUN_FILE, {"key": key, "stage": plan.name, "experiment": params.profile})
    metrics = {name: float(f"{v:.6g}") for name, v in stage.metrics.items()}
    write_json(STAGE_METRICS / f"{plan.name}.json", metrics)
    remove_whole(stage.checkpoint)


def _tracked_run(plan: StagePlan, key: str, params: Params) -> Any:
    """The stage's run, for the main process."""
    if not distributed.is_main() or not plan.tracked:
        return nullcontext(UntrackedRun())
    return stage_run(
        experiment=params.profile,
        name=plan.name,
        key=key,
        params=plan.params,
        tags={"stage": plan.name.partition("@")[0], "profile": params.profile},
        parent=plan.parent,
        advice=memory_advice(params, plan.name),
        dataset=None if plan.name == "subset" else data_set(params),
    )


def _prepare_torch(params: Params) -> Any:
    """The device, after joining the processes that torchrun started, if it did."""
    import torch

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(max(1, (params.threads or os.cpu_count() or 1) // processes))
    if params.device == "cuda" and not torch.cuda.is_available():
        raise FileError("params.yaml", "device is cuda, but torch sees no GPU here.", "Set device to auto or cpu.")
    device = torch.device("cuda" if params.device != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        give_back_from(KEPT_BYTES)
    return distributed.start(device) if distributed.launched() else device
