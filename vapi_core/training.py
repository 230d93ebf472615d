"""The training loop that the tokenizer, the generator and every alignment method share.

A method states its objective as a function of (step, slots of the global batch); the loop does the rest: learning
rate, accumulation, gradient clipping, metrics, checkpoints. Nothing random is carried from step to step (every draw has
its stream), so an interrupted run resumes to the same weights as an uninterrupted one.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vapi_core.files import atomic_path
from vapi_core.randomness import seed_torch, stream

Metrics = dict[str, float]


@dataclass(frozen=True)
class OptimizationConfig:
    """AdamW and its schedule. `schedule` says how the learning rate goes on after a linear warm-up."""

    learning_rate: float
    steps: int
    batch_size: int  # images of one optimizer step, over all processes
    micro_batch_size: int | None = None  # images of one forward; None: the whole batch
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_norm: float = 1.0
    checkpoint_every: int = 100


def learning_rate(config: OptimizationConfig, step: int) -> float:
    """Learning rate of a step, 0-based. Linear and cosine schedules would reach 0 at step `config.steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
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
class Slots:
    """A part of one step's global batch: positions start..stop, and the items of the data set that stand there."""

    step: int
    start: int
    items: np.ndarray

    @property
    def positions(self) -> range:
        return range(self.start, self.start + len(self.items))


def micro_batches(seed: int, step: int, config: OptimizationConfig, count: int) -> list[Slots]:
    """The global batch of a step, cut into micro-batches."""
    items = batch_items(seed, step, config.batch_size, count)
    size = config.micro_batch_size or config.batch_size
    return [Slots(step, start, items[start : start + size]) for start in range(0, len(items), size)]


Objective = Callable[[Slots], tuple[Tensor, dict[str, Tensor]]]
"""Mean loss over the slots, and detached means of what is worth a curve."""


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
) -> None:
    """Trains the parameters of `module` that require a gradient, in place.

    Args:
        count: items of the data set.
        log: called once per step with the step's metrics, again for the steps before a checkpoint when resuming.
        checkpoint: file of the resumable state; used only if it was written under the same `fingerprint`, a hash of
            all that determines the run. The caller removes it when the result is safe.
    """
    optimizer = adamw(module.named_parameters(), config)
    trained = [p for p in module.parameters() if p.requires_grad]
    history: list[Metrics] = []
    if checkpoint is not None:
        history = _resume(checkpoint, fingerprint, module, optimizer)
        for step, metrics in enumerate(history):
            log(step, metrics)
    for step in range(len(history), config.steps):
        rate = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        seed_torch(seed, "dropout", step)
        totals: dict[str, Any] = {}
        for slots in micro_batches(seed, step, config, count):
            share = len(slots.items) / config.batch_size
            loss, means = objective(slots)
            (loss * share).backward()
            for name, value in [("loss", loss.detach()), *means.items()]:
                totals[name] = totals.get(name, 0.0) + value * share
        gradient_norm = nn.utils.clip_grad_norm_(trained, config.gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        row = {name: float(value) for name, value in totals.items()}
        row |= {"gradient_norm": float(gradient_norm), "learning_rate": rate}
        history.append(row)
        log(step, row)
        if checkpoint is not None and (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            _save(checkpoint, fingerprint, module, optimizer, history)


def _save(
    path: Path, fingerprint: str, module: nn.Module, optimizer: torch.optim.Optimizer, history: list[Metrics]
) -> None:
    state = {
        "fingerprint": fingerprint,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": history,
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path, fingerprint: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Metrics]:
    """Restores module and optimizer; returns the metrics of the steps done, none if there is nothing to resume."""
    if not path.exists():
        return []
    state = torch.load(path, weights_only=True, mmap=True)
    if state["fingerprint"] != fingerprint:
        return []
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return state["history"]
