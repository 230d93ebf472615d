"""The training loop that the tokenizer, the generator and every alignment method share.

A method states its objective as a function of a micro-batch; the loop does the rest: learning rate, accumulation,
gradient clipping, metrics, checkpoints, processes. Nothing random is carried from step to step (every draw has its
stream), so an interrupted run resumes to the same weights as an uninterrupted one; under a budget of seconds, how many
steps fit into it depends on the machine.

Several processes share the positions of the global batch: replicas under DDP, or one module that
`distributed.shard_weights` spread over them (FSDP2). Where an objective draws from streams of these positions, as every
alignment method does, neither the number of processes nor the size of a micro-batch changes a step by more than
rounding (which over many steps is another random draw); dropout, which a step seeds as a whole, would.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vapi_core.distributed import from_main, is_sharded, rank, total, world_size
from vapi_core.errors import TrainingError
from vapi_core.limits import Bounds, Checked, Count, CountOrNone, Decay, Rate, Weight
from vapi_core.memory import even_parts
from vapi_core.randomness import seed_torch, stream
from vapi_core.training.budget import Clock, steps_of_budget
from vapi_core.training.states import Metrics, TrainingStates


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig(Checked):
    """AdamW and its schedule. `schedule` says how the learning rate goes on after a linear warm-up."""

    learning_rate: Rate
    steps: Count
    batch_size: Count  # images of one optimizer step, over all processes
    micro_batch_size: Count | None = None  # images of one forward of one process; None: all that it has of a step
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: CountOrNone = 0
    weight_decay: Weight = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    gradient_norm: Annotated[float, Bounds(above=0, most=1e6)] = 1.0
    checkpoint_every: Count = 100
    # "steps": `steps` of them | a number: seconds of training, in which as many steps are made as fit
    budget: Literal["steps"] | Annotated[float, Bounds(above=0, most=1e8)] = "steps"

    @property
    def seconds(self) -> float | None:
        """Wall time after which training ends, whatever `steps` says; None: it ends after `steps`."""
        return None if self.budget == "steps" else float(self.budget)


def learning_rate(config: OptimizationConfig, step: int, spent: float = 0.0) -> float:
    """Learning rate of a step, 0-based, before which `spent` seconds are gone.

    Linear and cosine schedules would reach 0 at step `config.steps`, or at the end of the budget of seconds.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.seconds is not None:
        progress = min(1.0, spent / config.seconds)
    factor = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }[config.schedule]
    return config.learning_rate * factor


def adamw(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizationConfig) -> torch.optim.AdamW:
    """AdamW without weight decay on parameters whose name contains "norm", the rule of the authors' trainer."""
    trained = [(name, p) for name, p in named_parameters if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if "norm" not in name], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trained if "norm" in name], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def batch_items(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Which of `count` items step `step` trains on, [batch_size]: shuffled anew each epoch, none left out."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    items = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(positions // count):
        inside = positions // count == epoch
        items[inside] = stream(seed, "order", int(epoch)).permutation(count)[positions[inside] % count]
    return items


@dataclass(frozen=True)
class MicroBatch:
    """A part of one step's global batch: positions start..stop, and the items of the data set that stand there."""

    step: int
    start: int
    items: np.ndarray

    @property
    def positions(self) -> range:
        return range(self.start, self.start + len(self.items))


def micro_batches(
    seed: int, step: int, config: OptimizationConfig, count: int, rank: int = 0, processes: int = 1
) -> list[MicroBatch]:
    """What process `rank` has of the global batch of a step, cut into micro-batches."""
    assert config.batch_size % processes == 0, "processes with unlike numbers of micro-batches would wait for ever"
    items = batch_items(seed, step, config.batch_size, count)
    share = config.batch_size // processes
    size, first, stop = config.micro_batch_size or share, rank * share, (rank + 1) * share
    return [MicroBatch(step, start, items[start : min(start + size, stop)]) for start in range(first, stop, size)]


Loss = tuple[Tensor, dict[str, Tensor]]
Objective = Callable[[MicroBatch], Loss]
"""Mean loss over the micro-batch, and detached means of what is worth a curve."""


@dataclass(frozen=True)
class Part:
    """A part of an objective over a micro-batch, with a backward of its own."""

    share: float  # of the micro-batch: its weight in the mean
    loss: Callable[[], Loss]


class InParts(ABC):
    """An objective over a micro-batch that need not fit into memory at once."""

    @abstractmethod
    def parts(self, batch: MicroBatch) -> list[Part]:
        """What is computed one after the other. The loss is the sum of the parts' losses, each times its share."""

    def __call__(self, batch: MicroBatch) -> Loss:
        """All parts at once."""
        loss: Any = 0.0
        means: dict[str, Any] = {}
        for part in self.parts(batch):
            own_loss, own_means = part.loss()
            loss = loss + own_loss * part.share
            for name, value in own_means.items():
                means[name] = means.get(name, 0.0) + value * part.share
        return loss, means


def parts_of(objective: Objective, batch: MicroBatch) -> list[Part]:
    """The parts of any objective; one, of an objective that knows none."""
    return objective.parts(batch) if isinstance(objective, InParts) else [Part(1.0, partial(objective, batch))]


def image_parts(objective: Objective, batch: MicroBatch, images: int) -> list[Part]:
    """An objective over a micro-batch, so many images at a time."""
    return [
        Part(
            (part.stop - part.start) / len(batch.items),
            partial(objective, MicroBatch(batch.step, batch.start + part.start, batch.items[part])),
        )
        for part in even_parts(len(batch.items), images)
    ]


class _Autocast(InParts):
    def __init__(self, objective: Objective, device: torch.device, dtype: torch.dtype):
        self.objective, self.device, self.dtype = objective, device, dtype

    def parts(self, batch: MicroBatch) -> list[Part]:
        with torch.autocast(self.device.type, self.dtype):
            parts = parts_of(self.objective, batch)
        return [Part(part.share, partial(self._cast, part)) for part in parts]

    def _cast(self, part: Part) -> Loss:
        with torch.autocast(self.device.type, self.dtype):
            return part.loss()


def autocast(objective: Objective, device: torch.device, dtype: torch.dtype) -> Objective:
    """The objective with its matrix products and convolutions in `dtype`; weights and gradients stay as they are."""
    return objective if dtype == torch.float32 else _Autocast(objective, device, dtype)


def train(
    module: nn.Module,
    objective: Objective,
    config: OptimizationConfig,
    *,
    count: int,
    seed: int,
    log: Callable[[int, Metrics], None],
    checkpoint: Path | None = None,
    fingerprint: str = "",
    keep: Callable[[int], None] = lambda steps: None,
) -> None:
    """Trains the parameters of `module` that require a gradient, in place.

    A step whose loss or gradient norm is not finite is not taken, and weights that are not finite are not kept: the
    last checkpoint is good.

    Args:
        count: items of the data set.
        log: called once per step with the step's metrics, again for the steps before a checkpoint when resuming.
        checkpoint: directory of the resumable states (`states`); one is used only if it was written under the same
            `fingerprint`, a hash of all that determines the run. The number of processes may be another. The caller
            removes the directory when the result is safe.
        keep: called after each step with the number of steps done, by all processes; not again when resuming.

    Raises:
        TrainingError: a loss, a gradient norm or a weight is not finite.
    """
    optimizer = adamw(module.named_parameters(), config)
    trained = [p for p in module.parameters() if p.requires_grad]
    history: list[Metrics] = []
    states = None if checkpoint is None else TrainingStates(checkpoint, fingerprint)
    if states is not None:
        history = states.resume(module, optimizer)
        for step, metrics in enumerate(history):
            log(step, metrics)
    replica = _replica(module)
    clock = Clock(history, agree=from_main)
    for step in steps_of_budget(len(history), config.steps, config.seconds, clock):
        rate = learning_rate(config, step, clock.spent() if config.seconds is not None else 0.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        seed_torch(seed, "dropout", step)
        totals: dict[str, Any] = {}
        batches = micro_batches(seed, step, config, count, rank(), world_size())
        for batch in batches:
            parts = parts_of(objective, batch)
            for part in parts:
                share = len(batch.items) / config.batch_size * part.share
                last = batch is batches[-1] and part is parts[-1]
                with replica.no_sync() if replica and not last else nullcontext():
                    loss, means = replica(part) if replica else part.loss()
                    (loss * (share * world_size())).backward()  # gradients are averaged over processes
                for name, value in [("loss", loss.detach()), *means.items()]:
                    totals[name] = totals.get(name, 0.0) + value * share
        gradient_norm = nn.utils.clip_grad_norm_(trained, config.gradient_norm)
        totals["gradient_norm"] = _whole(gradient_norm).double() / world_size()  # has come from all already
        row = total(totals) | {"learning_rate": rate}
        _check_finite(step, {name: row[name] for name in ("loss", "gradient_norm")})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _check_finite(step, total({"the largest weight": _largest(trained)}))
        if config.seconds is not None:
            row["seconds"] = clock.spent()
        history.append(row)
        log(step, row)
        keep(step + 1)
        if states is not None and (step + 1) % config.checkpoint_every == 0 and step + 1 != config.steps:
            states.save(module, optimizer, history)


class _PartModule(nn.Module):
    """A part of an objective as the forward of a module, which is what DDP watches."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, part: Part) -> Loss:
        return part.loss()


def _replica(module: nn.Module) -> DistributedDataParallel | None:
    """The module under DDP, if there are several processes that each hold all of it; called with a part."""
    if world_size() == 1 or is_sharded(module):
        return None
    return DistributedDataParallel(_PartModule(module), gradient_as_bucket_view=True)


def _check_finite(step: int, metrics: Metrics) -> None:
    """Raises TrainingError for a step's first metric that is not finite, of all processes, so that all stop."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(step + 1, name, value)


def _largest(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Largest absolute value of what this process has of the parameters; NaN if there is one."""
    parts = [part for part in (_own(p.detach()) for p in parameters) if part.numel()]
    return nn.utils.get_total_norm(parts, math.inf)


def _own(value: Tensor) -> Tensor:
    """What this process has of a tensor that may be spread over processes."""
    return value.to_local() if hasattr(value, "to_local") else value  # a DTensor


def _whole(value: Tensor) -> Tensor:
    """A tensor without its being spread over processes, if it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value  # a DTensor
