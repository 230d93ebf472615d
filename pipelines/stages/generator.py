"""Stage `generator`: pretrains the generator, class- or caption-conditional, on cached tokens, or imports a checkpoint."""

import argparse
from typing import Any

from pipelines.importing import import_generator, import_janus
from pipelines.inputs import open_captions, open_split
from pipelines.params import grid_side
from pipelines.paths import GENERATOR, SUBSET, TOKENS
from pipelines.rules import is_janus
from pipelines.stage import Stage, StagePlan, run_stage
from vapi_core.data.sources import require_class_numbers
from vapi_core.data.subset import Subset
from vapi_core.models.checkpoints import save_model
from vapi_core.models.generator import Generator
from vapi_core.models.policy import Policy
from vapi_core.pretraining import GeneratorObjective, held_out_cross_entropy
from vapi_core.randomness import seed_torch
from vapi_core.training import train


def plan(params, arguments) -> StagePlan:
    return StagePlan("generator", GENERATOR, params.generator.model_dump(), (SUBSET, TOKENS), parent=None)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params.generator
    if is_janus(params.checkpoint):
        stage.skip_training()
        finish(stage, *import_janus(stage.params))
        return
    classes = Subset.open(SUBSET).classes
    if stage.params.task == "c2i" and params.checkpoint is not None:
        require_class_numbers(classes, SUBSET)
    captions = open_captions() if stage.params.task == "t2i" else None
    seed_torch(params.seed, "generator weights")
    config = params.config(
        grid_side(stage.params),
        stage.params.tokenizer.codebook_size,
        len(classes),
        **({} if captions is None else {"caption_dim": captions.dim, "caption_tokens": captions.limit}),
    )
    generator = Generator(config).to(stage.device)
    imported: dict[str, Any] = {}
    if params.training is not None:
        data = open_split("train", stage.device)
        with stage.training_log(params.training.steps, params.training.batch_size) as log:
            train(
                generator,
                GeneratorObjective(generator, data),
                params.training.config(),
                count=len(data),
                seed=params.seed,
                log=log,
                checkpoint=stage.checkpoint,
                fingerprint=stage.fingerprint,
            )
    else:
        assert params.checkpoint is not None
        imported = import_generator(params.checkpoint, generator)
        stage.skip_training()
    finish(stage, generator, imported)


def finish(stage: Stage, policy: Policy, imported: dict[str, Any]) -> None:
    """Measures the policy and saves it, with what is known of its origin if it was imported."""
    policy = policy.to(stage.device).eval()
    held_out = stage.params.score.reference_splits[0]
    for split in [held_out] if imported else ["train", held_out]:
        stage.metrics[f"cross_entropy_{split}"] = held_out_cross_entropy(policy, open_split(split, stage.device))
    stage.metrics["parameters"] = sum(p.numel() for p in policy.parameters())
    save_model(GENERATOR, "generator", policy, **imported)


if __name__ == "__main__":
    run_stage(plan, work)
