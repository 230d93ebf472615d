"""Stage `tokenize`: the token cache of the whole subset."""

import argparse
import time

from pipelines.params import grid_side
from pipelines.paths import SUBSET, TOKENIZER, TOKENS
from pipelines.progress import progress
from pipelines.stage import Stage, StagePlan, run_stage
from vapi_core.data.cache import write_token_cache
from vapi_core.data.subset import Subset, subset_hash
from vapi_core.models.checkpoints import load_model, model_hash
from vapi_core.pretraining import encode_images

BATCH = 256


def plan(params, arguments) -> StagePlan:
    return StagePlan("tokenize", TOKENS, {}, (SUBSET, TOKENIZER))


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    subset = Subset.open(SUBSET)
    tokenizer = load_model(TOKENIZER, "tokenizer", "To make it anew, run `dvc repro tokenizer`.").to(stage.device)
    started = time.monotonic()
    with progress("tokenize", len(subset.images), "images") as advance:

        def batches():
            for start in range(0, len(subset.images), BATCH):
                images = subset.images[start : start + BATCH]
                yield encode_images(tokenizer, images, stage.device, BATCH)
                advance(len(images))

        write_token_cache(
            TOKENS,
            batches(),
            subset.labels,
            subset.splits,
            grid=grid_side(stage.params),
            codebook_size=tokenizer.config.codebook_size,
            tokenizer_sha256=model_hash(TOKENIZER, "tokenizer"),
            subset_sha256=subset_hash(SUBSET),
        )
    stage.metrics["images_per_second"] = len(subset.images) / (time.monotonic() - started)


if __name__ == "__main__":
    run_stage(plan, work)
