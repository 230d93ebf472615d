"""The frame around every DVC stage: typed params, device, tracking, metrics, errors. The stages themselves are thin."""

import argparse
import csv
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.params import Params, load_params
from pipelines.paths import CURVES, RUN_FILE, STAGE_METRICS, WORK
from pipelines.progress import progress
from pipelines.tracking import StageRun, stage_key, stage_run
from vapi_core.errors import FileError, VapiError
from vapi_core.files import atomic_path, read_json, write_json

Metrics = dict[str, float]


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


@dataclass
class Stage:
    """What a stage's work gets."""

    plan: StagePlan
    params: Params
    device: Any  # torch.device
    run: StageRun
    key: str
    metrics: Metrics = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """Directory the stage writes."""
        assert self.plan.output is not None
        return self.plan.output

    @property
    def checkpoint(self) -> Path:
        """Where a training stage keeps its resumable state; removed once the output is whole."""
        return WORK / "checkpoints" / f"{self.plan.name}.pt"

    @contextmanager
    def training_log(self, steps: int, images_per_step: int):
        """Yields the log callback of a training: progress, MLflow curves, and at the end the curves as CSV.

        The CSV holds what is the same on every run of the same machine; rates go to MLflow and the stage's metrics.
        """
        rows: list[Metrics] = []
        started = time.monotonic()
        resumed = 0
        previous = started
        with progress(self.plan.name, steps, "steps") as advance:

            def log(step: int, row: Metrics) -> None:
                nonlocal previous, resumed
                now = time.monotonic()
                rows.append({"step": step + 1, **row})
                live = {f"train/{name}": value for name, value in row.items()}
                if now - previous > 1e-3:  # steps before a resumed checkpoint are only told again
                    live["train/images_per_second"] = images_per_step / (now - previous)
                else:
                    resumed = step + 1
                previous = now
                self.run.log(live, step=step + 1)
                advance(note=f"loss {row['loss']:.4g}")

            yield log
        trained = len(rows) - resumed
        self.metrics["images_per_second"] = trained * images_per_step / max(time.monotonic() - started, 1e-9)
        write_curves(CURVES / f"{self.plan.name}.csv", rows)


def write_curves(path: Path, rows: list[Metrics]) -> None:
    """One line per step; a metric that some steps lack is empty there."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)


def upstream_keys(plan: StagePlan) -> list[str]:
    """Keys of the runs that made this stage's inputs."""
    return [read_json(d / RUN_FILE, f"To make it anew, run `dvc repro {d.name}`.")["key"] for d in plan.upstream]


def run_stage(
    plan: Callable[[Params, argparse.Namespace], StagePlan],
    work: Callable[[Stage, argparse.Namespace], None],
    parser: argparse.ArgumentParser | None = None,
) -> None:
    """Runs one stage as a process. On an error that is the user's to mend: one message on stderr and exit code 1."""
    arguments = (parser or argparse.ArgumentParser()).parse_args()
    try:
        params = load_params()
        _execute(plan(params, arguments), work, params, arguments)
    except VapiError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _execute(plan: StagePlan, work: Any, params: Params, arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    key = stage_key(plan.name, plan.params, upstream_keys(plan))
    device = _prepare_torch(params)
    with stage_run(
        experiment=params.profile,
        name=plan.name,
        key=key,
        params=plan.params,
        tags={"stage": plan.name.partition("@")[0], "profile": params.profile},
        parent=plan.parent,
    ) as run:
        stage = Stage(plan, params, device, run, key)
        work(stage, arguments)
        stage.metrics["seconds"] = time.monotonic() - started
        stage.metrics["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            1024 if sys.platform == "linux" else 1024**2
        )
        run.log({f"stage/{name}": value for name, value in stage.metrics.items()})
    if plan.output is not None:
        plan.output.mkdir(parents=True, exist_ok=True)
        write_json(plan.output / RUN_FILE, {"key": key, "stage": plan.name, "experiment": params.profile})
    write_json(STAGE_METRICS / f"{plan.name}.json", {name: float(f"{v:.6g}") for name, v in stage.metrics.items()})
    stage.checkpoint.unlink(missing_ok=True)


def _prepare_torch(params: Params) -> Any:
    import torch

    torch.set_num_threads(params.threads or os.cpu_count() or 1)
    if params.device == "cuda" and not torch.cuda.is_available():
        raise FileError("params.yaml", "device is cuda, but torch sees no GPU here.", "Set device to auto or cpu.")
    if params.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(params.device)
