"""Stage `generator`: pretrains the generator, by class or caption, on cached tokens, or imports a checkpoint."""

import argparse
from dataclasses import asdict
from typing import Any

from pipelines.config.params import grid_side
from pipelines.config.paths import CAPTIONS, GENERATOR, SUBSET, TOKENS, remedy
from pipelines.frame.inputs import open_split, open_subset
from pipelines.frame.stage import Stage, StagePlan, run_stage
from vapi_core.data.sources import require_class_numbers
from vapi_core.models.checkpoints import save_model
from vapi_core.models.families import FAMILIES
from vapi_core.models.policy import Policy
from vapi_core.randomness import seed_torch
from vapi_core.training.loop import train
from vapi_core.training.pretraining import GeneratorObjective, held_out_cross_entropy


def plan(params, arguments) -> StagePlan:
    return StagePlan("generator", GENERATOR, asdict(params.generator), (SUBSET, TOKENS), parent=None)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params, family = stage.params.generator, FAMILIES[stage.params.generator.family]
    classes = open_subset().classes
    if stage.params.task == "c2i" and params.checkpoint is not None:
        require_class_numbers(classes, SUBSET)
    config = params.config(
        grid_side(stage.params),
        stage.params.tokenizer.codebook_size,
        len(classes),
        **(family.caption_shape(CAPTIONS, remedy(CAPTIONS)) if stage.params.task == "t2i" else {}),
    )
    if params.checkpoint is not None:
        stage.skip_training()
        finish(stage, *family.import_generator(params.checkpoint, config))
        return
    assert params.training is not None
    seed_torch(params.seed, "generator weights")
    generator = family.policy(config).to(stage.device)
    data = open_split("train", stage.device, params.family)
    with stage.training_log(params.training.steps, params.training.batch_size) as log:
        train(
            generator,
            GeneratorObjective(generator, data),
            params.training,
            count=len(data),
            seed=params.seed,
            log=log,
            checkpoint=stage.checkpoint,
            fingerprint=stage.fingerprint,
        )
    finish(stage, generator, {})


def finish(stage: Stage, policy: Policy, imported: dict[str, Any]) -> None:
    """Measures the policy and saves it, with what is known of its origin if it was imported."""
    policy = policy.to(stage.device).eval()
    held_out, family = stage.params.score.reference_splits[0], stage.params.generator.family
    for split in [held_out] if imported else ["train", held_out]:
        stage.metrics[f"cross_entropy_{split}"] = held_out_cross_entropy(
            policy, open_split(split, stage.device, family)
        )
    stage.metrics["parameters"] = sum(p.numel() for p in policy.parameters())
    save_model(GENERATOR, "generator", policy, **imported)


def main(arguments: list[str]) -> int:
    """Runs the stage; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages generator")
    return run_stage(plan, work, parser.parse_args(arguments))
