"""Stage `align`: one alignment of the base generator, by one method and one seed."""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from pipelines.inputs import (
    open_external_rewards,
    open_generator,
    open_perceptual,
    open_split,
    open_tokenizer,
)
from pipelines.params import Method
from pipelines.paths import CLASSIFIERS, GENERATOR, TOKENIZER, TOKENS, after_steps, aligned, reports_of
from pipelines.stage import Stage, StagePlan, run_stage
from vapi_core import distributed
from vapi_core.alignment.ar_grpo import ArGrpo
from vapi_core.alignment.cross_entropy import CrossEntropy
from vapi_core.alignment.data import AlignmentData
from vapi_core.alignment.reward import ReconstructionReward
from vapi_core.alignment.straight_through import StraightThrough
from vapi_core.alignment.tokenizer_post_training import TokenizerPostTraining
from vapi_core.alignment.va_pi import VaPi
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import link_tree
from vapi_core.flops import flops_per_image
from vapi_core.memory import free_bytes
from vapi_core.models.checkpoints import model_hash, save_model
from vapi_core.models.policy import Policy
from vapi_core.models.tokenizer import Tokenizer
from vapi_core.training import Objective, autocast, train


@dataclass(frozen=True)
class Alignment:
    """One method with one seed: what it trains, and what it minimizes under `launch.dtype`."""

    method: str
    seed: int
    generator: Policy
    tokenizer: Tokenizer
    objective: Objective
    count: int  # items that it learns from

    @property
    def kind(self) -> str:
        """Which of the two models is trained."""
        return "tokenizer" if self.method == "tokenizer" else "generator"

    @property
    def trained(self) -> nn.Module:
        return self.tokenizer if self.kind == "tokenizer" else self.generator


def plan(params, arguments) -> StagePlan:
    return StagePlan(
        f"align@{arguments.method}-{arguments.seed}",
        aligned(arguments.method, arguments.seed),
        params.align.of_method(arguments.method)
        | {"method": arguments.method, "seed": arguments.seed, "dtype": params.launch.dtype},
        (GENERATOR, TOKENS, TOKENIZER, CLASSIFIERS / "reward"),
        parent=None,
        reports=reports_of(params, arguments.method),
    )


def open_policy(stage: Stage, method: str) -> Policy:
    """The base generator on the stage's device; with strategy fsdp, spread over those of all processes."""
    launch = stage.params.launch
    sharded = launch.strategy == "fsdp" and distributed.world_size() > 1
    if sharded and method == "ar-grpo":
        raise ParameterError("launch.strategy", "ar-grpo draws token by token, for which it needs whole weights: ddp.")
    generator = open_generator(GENERATOR, torch.device("cpu") if sharded else stage.device)
    generator.activation_checkpointing = launch.activation_checkpointing
    if sharded:
        distributed.shard_weights(generator, stage.device, stage.dtype)
    return generator


def open_objective(
    stage: Stage, method: str, seed: int, generator: Policy, tokenizer: Tokenizer, data: AlignmentData
) -> Objective:
    """What a method minimizes, with the networks that it needs."""
    params, device = stage.params.align, stage.device

    def base() -> Policy:
        return open_policy(stage, method).requires_grad_(False)

    if method == "cross-entropy":
        return CrossEntropy(generator, data)
    if method == "ar-grpo":
        grpo, rewards = params.grpo(), open_external_rewards(params.ar_grpo, device)
        return ArGrpo(generator, tokenizer, rewards, data, grpo, seed, base() if grpo.kl_weight else None)
    perceptual = open_perceptual(params, device) if params.reward.perceptual else None
    if method == "ste":
        return StraightThrough(generator, tokenizer, data, params.straight_through(), seed, perceptual)
    if method == "tokenizer":
        return TokenizerPostTraining(tokenizer, generator, data, params.weights(), seed, perceptual)
    va_pi = params.method()
    needs_base = va_pi.regularizer == "kl" or va_pi.log_kl_every > 0
    optimization = params.optimization(method)
    comes_again = optimization.seconds is not None or optimization.steps * optimization.batch_size > len(data)
    sharing_memory = distributed.world_size() if device.type == "cpu" else 1
    kept = free_bytes(device) // (4 * sharing_memory) if comes_again else 0
    reward = ReconstructionReward(tokenizer, va_pi.reward, perceptual, stage.dtype, kept)
    return VaPi(generator, reward, data, va_pi, seed, base() if needs_base else None)


def open_alignment(stage: Stage, method: str, seed: int) -> Alignment:
    generator, tokenizer = open_policy(stage, method), open_tokenizer(stage.device)
    data = open_split("train", stage.device)
    objective = open_objective(stage, method, seed, generator, tokenizer, data)
    return Alignment(method, seed, generator, tokenizer, autocast(objective, stage.device, stage.dtype), len(data))


def align(stage: Stage, alignment: Alignment, keep: Callable[[int], None] = lambda steps: None) -> None:
    """Trains in place; resumable. The curves go to the stage's log. `keep` is told how many steps are done after each."""
    config = stage.params.align.optimization(alignment.method)
    if stage.params.launch.compile:
        alignment.generator.compile()
    with stage.training_log(config.steps, config.batch_size) as log:
        train(
            alignment.trained,
            alignment.objective,
            config,
            count=alignment.count,
            seed=alignment.seed,
            log=log,
            checkpoint=stage.checkpoint,
            fingerprint=stage.fingerprint,
            keep=keep,
        )


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    method, seed = arguments.method, arguments.seed
    alignment = open_alignment(stage, method, seed)
    kind, trained = alignment.kind, alignment.trained
    base = {"generator": GENERATOR, "tokenizer": TOKENIZER}[kind]
    config = stage.params.align.optimization(method)
    flops = flops_per_image(trained, alignment.objective, config, alignment.count, seed)
    stage.metrics["flops_per_image"] = flops
    kept_steps = stage.params.align.kept_steps()
    kept = stage.checkpoint / "kept"  # not in the output, which DVC empties before a retry

    def save(directory: Path) -> None:
        weights = distributed.whole_state_dict(trained)
        if distributed.is_main():
            save_model(directory, kind, trained, weights, base_sha256=model_hash(base, kind))

    def keep(steps: int) -> None:
        if steps in kept_steps:
            save(kept / str(steps))

    align(stage, alignment, keep)
    save(stage.output)
    if kept_steps and distributed.is_main():
        shutil.rmtree(stage.output / "steps", ignore_errors=True)  # of a run without DVC, which empties the output
        (stage.output / "steps").mkdir()
        for steps in kept_steps:
            if not (kept / str(steps)).is_dir():
                raise FileError(
                    kept / str(steps), "the weights after these steps are gone.", f"Remove {stage.checkpoint}."
                )
            link_tree(kept / str(steps), after_steps(method, seed, steps))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", required=True, choices=get_args(Method))
    parser.add_argument("--seed", type=int, required=True)
    run_stage(plan, work, parser, parallel=True)
