"""One alignment step: ours against the authors' schedule, on the same weights, images and random numbers."""

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import authors
from benchmarks.measure import Results, flops, least_disturbed_ratio, machine, matmul_rate, pairs, peak
from benchmarks.models import Setting, build_data, build_generator, build_perceptual, build_tokenizer, setting
from vapi_core.alignment.reward import ReconstructionReward
from vapi_core.alignment.va_pi import VaPi
from vapi_core.models.llamagen.generator import Generator
from vapi_core.training.loop import MicroBatch, autocast

SEED = 0


class Sides:
    """Both sides of a step on one policy: the learning rate is 0, so that each finds the same weights.

    The frozen base is the policy's own weights: the authors' further copy of them is not held, and not counted.
    """

    def __init__(self, s: Setting, contexts_at_a_time: int | None, optimizer: str):
        self.setting, self.contexts_at_a_time = s, contexts_at_a_time
        self.generator, self.tokenizer, self.perceptual = build_generator(s), build_tokenizer(s), build_perceptual(s)
        self.data = build_data(s, self.tokenizer)
        self.batch = MicroBatch(0, 0, np.arange(s.images))
        reward = ReconstructionReward(self.tokenizer, s.method.reward, self.perceptual)
        self.rewards: dict[str, Tensor] = {}

        def remember(*arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
            self.rewards["ours"], terms = reward(*arguments)
            return self.rewards["ours"], terms

        objective = VaPi(self.generator, reward, self.data, s.method, SEED)
        objective.reward = remember  # type: ignore[assignment]
        self.objective = autocast(objective, s.device, s.dtype)
        self.optimizer: torch.optim.Optimizer
        if optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(self.generator.parameters(), lr=0.0, fused=True)
            self._make_moments()
        else:
            self.optimizer = torch.optim.SGD(self.generator.parameters(), lr=0.0)

    def _make_moments(self) -> None:
        """Makes AdamW's moments now: in the first step they would count to the peak of the side that runs first."""
        for parameter in self.generator.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def ours(self) -> None:
        loss, _ = self.objective(self.batch)
        loss.backward()

    def authors(self) -> None:
        s = self.setting
        result = authors.align_step(
            self.generator,
            self.generator,
            self.tokenizer,
            self.perceptual,
            self.data,
            s.method,
            SEED,
            self.batch,
            self.contexts_at_a_time,
            s.dtype,
        )
        self.rewards["authors"] = result["rewards"]

    def step(self, gradient: Any) -> None:
        """A whole step with the gradient of one side."""
        gradient()
        nn.utils.clip_grad_norm_(self.generator.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def check(sides: Sides) -> Results:
    """One run of each: work in FLOPs, and how far rewards and gradients of the first and the last layers agree."""
    work, gradients = {}, {}
    for name in ("ours", "authors"):
        work[name] = flops(getattr(sides, name))
        gradients[name] = watched_gradient(sides.generator)
        sides.generator.zero_grad(set_to_none=True)
    difference = (gradients["ours"] - gradients["authors"]).norm() / gradients["authors"].norm()
    rewards = (sides.rewards["ours"] - sides.rewards["authors"]).abs().max()
    return {
        "flops": work,
        "flop_ratio": work["authors"] / work["ours"],
        "gradient_difference": float(difference),
        "reward_difference": float(rewards),
    }


def watched(generator: Generator) -> list[nn.Parameter]:
    """The parameters of the first and the last layers."""
    parts = [generator.tok_embeddings, generator.layers[0], generator.layers[-1], generator.norm, generator.output]
    return [p for part in parts for p in part.parameters()]


def watched_gradient(generator: Generator) -> Tensor:
    return torch.cat([p.grad.flatten().clone() for p in watched(generator) if p.grad is not None])


def benchmark(options: argparse.Namespace) -> Results:
    """Both sides checked against each other, then timed in pairs."""
    s = setting(options)
    sides = Sides(s, options.contexts_at_a_time, options.optimizer)
    results: Results = {"setting": s.describe() | {"optimizer": options.optimizer}, "machine": machine(s.device)}
    results |= check(sides)
    if options.quick:
        return results
    rate = matmul_rate(s.device, s.dtype)
    results |= pairs(lambda: sides.step(sides.ours), lambda: sides.step(sides.authors), s.device, options.pairs)
    results["matmul_flops_per_second"] = rate
    results["share_of_matmul_rate"] = {
        name: results["flops"][name] / seconds / rate for name, seconds in results["median_seconds"].items()
    }
    results["share_of_flop_ratio"] = least_disturbed_ratio(results) / results["flop_ratio"]
    if options.growth:
        del sides
        results["growth"] = growth(s, options)
    return results


def growth(s: Setting, options: argparse.Namespace) -> list[Results]:
    """Peak memory of a step of each side as images and rollouts double, and around the setting's resolution."""
    rows = []
    for quantity, factors in (("images", (1, 2, 4)), ("group_size", (1, 2, 4)), ("image_size", (0.5, 1, 2))):
        for factor in factors:
            changed = grown(s, quantity, factor)
            sides = Sides(changed, options.contexts_at_a_time, options.optimizer)
            row: Results = {"quantity": quantity, "value": changed.describe()[quantity]}
            for name in ("ours", "authors"):
                row[name] = peak(lambda sides=sides, name=name: sides.step(getattr(sides, name)), s.device)
            rows.append(row)
            del sides  # before the next policy and its moments are made
    return rows


def grown(s: Setting, quantity: str, factor: float) -> Setting:
    if quantity == "images":
        return replace(s, images=int(s.images * factor))
    if quantity == "group_size":
        return replace(s, method=replace(s.method, group_size=int(s.method.group_size * factor)))
    grid = int(s.generator.grid * factor)
    return replace(s, image_size=grid * s.tokenizer.downsample, generator=replace(s.generator, grid=grid))
