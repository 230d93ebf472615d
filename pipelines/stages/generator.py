"""Stage `generator`: pretrains the class-conditional generator on cached tokens, or imports a checkpoint."""

import argparse

from pipelines.inputs import open_split
from pipelines.params import grid_side
from pipelines.paths import GENERATOR, SUBSET, TOKENS
from pipelines.stage import Stage, StagePlan, run_stage
from vapi_core.data.subset import Subset
from vapi_core.models.checkpoints import import_model, save_model
from vapi_core.models.generator import Generator
from vapi_core.pretraining import GeneratorObjective, held_out_cross_entropy
from vapi_core.randomness import seed_torch
from vapi_core.training import train


def plan(params, arguments) -> StagePlan:
    return StagePlan("generator", GENERATOR, params.generator.model_dump(), (SUBSET, TOKENS), parent=None)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params.generator
    classes = len(Subset.open(SUBSET).classes)
    seed_torch(params.seed, "generator weights")
    config = params.config(grid_side(stage.params), stage.params.tokenizer.codebook_size, classes)
    generator = Generator(config).to(stage.device)
    if params.checkpoint is None:
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
                fingerprint=stage.key,
            )
    else:
        import_model(params.checkpoint, generator)
    generator.eval()
    for split in ("train", stage.params.score.reference_splits[0]):
        stage.metrics[f"cross_entropy_{split}"] = held_out_cross_entropy(generator, open_split(split, stage.device))
    stage.metrics["parameters"] = sum(p.numel() for p in generator.parameters())
    save_model(GENERATOR, "generator", generator)


if __name__ == "__main__":
    run_stage(plan, work)
