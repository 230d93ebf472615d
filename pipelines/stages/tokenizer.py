"""Stage `tokenizer`: trains the VQ tokenizer on the training split, or imports a checkpoint.

Where all training images are gray, so is what the trained tokenizer decodes.
"""

import argparse
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from pipelines.config.paths import REPORTS, SUBSET, TOKENIZER
from pipelines.frame.inputs import open_subset
from pipelines.frame.stage import Stage, StagePlan, run_stage
from pipelines.reporting.figures import side_by_side
from vapi_core.data.images import encode_images, images_of_a_pass, to_uint8
from vapi_core.models.checkpoints import save_model
from vapi_core.models.families import FAMILIES
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.randomness import seed_torch
from vapi_core.training.loop import train
from vapi_core.training.pretraining import TokenizerObjective, codebook_use

PICTURE = REPORTS / "figures" / "reconstructions.png"


def plan(params, arguments) -> StagePlan:
    return StagePlan("tokenizer", TOKENIZER, asdict(params.tokenizer), (SUBSET,))


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params.tokenizer
    subset = open_subset()
    seed_torch(params.seed, "tokenizer weights")
    images, _ = subset.split("train")
    gray = params.checkpoint is None and is_gray(images)
    tokenizer = Tokenizer(replace(params.config(), gray=gray)).to(stage.device)
    imported: dict[str, Any] = {}
    if params.training is not None:
        with stage.training_log(params.training.steps, params.training.batch_size) as log:
            train(
                tokenizer,
                TokenizerObjective(
                    tokenizer,
                    images,
                    stage.device,
                    params.l1_weight,
                    params.unquantized_steps,
                    params.seed,
                    params.color_weight,
                ),
                params.training,
                count=len(images),
                seed=params.seed,
                log=log,
                checkpoint=stage.checkpoint,
                fingerprint=stage.fingerprint,
            )
    else:
        assert params.checkpoint is not None
        family = FAMILIES[stage.params.generator.family]
        tokenizer, imported = family.import_tokenizer(params.checkpoint, params.config())
        stage.skip_training()
    tokenizer.to(stage.device).eval()
    held_out, _ = subset.split(stage.params.score.reference_splits[0])
    reconstructions, tokens = reconstruct(tokenizer, held_out, stage.device)
    error = reconstructions.astype(np.float32) - held_out
    usage, perplexity = codebook_use(tokens, params.codebook_size)
    stage.metrics |= {
        "gray": float(gray),
        "reconstruction_mse": float(np.square(error / 127.5).mean()),  # of images in [-1, 1]
        "codebook_usage": usage,
        "codebook_perplexity": perplexity,
    }
    side_by_side(PICTURE, {"held-out images": held_out[:40], "their reconstructions": reconstructions[:40]}, columns=10)
    stage.run.artifact(PICTURE)
    save_model(TOKENIZER, "tokenizer", tokenizer, **imported)


def is_gray(images: np.ndarray) -> bool:
    """Whether the channels of all images [N, H, W, 3] are equal."""
    return bool((images == images[..., :1]).all())


@torch.inference_mode()
def reconstruct(tokenizer: Tokenizer, images: np.ndarray, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Reconstructions uint8 [N, H, W, 3] and tokens [N, T] of images."""
    batch = images_of_a_pass(images.shape[1])
    tokens = encode_images(tokenizer, images, device, batch)
    grid = tuple(side // tokenizer.config.downsample for side in images.shape[1:3])
    parts = [
        to_uint8(tokenizer.decode(torch.from_numpy(tokens[i : i + batch]).to(device), grid))
        for i in range(0, len(tokens), batch)
    ]
    return np.concatenate(parts), tokens


def main(arguments: list[str]) -> int:
    """Runs the stage; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages tokenizer")
    return run_stage(plan, work, parser.parse_args(arguments))
