"""Stage `tokenize`: the token cache of the whole subset; for text to image the text features of its captions too."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict

from pipelines.config.params import grid_side
from pipelines.config.paths import CAPTIONS, SUBSET, TOKENIZER, TOKENS, remedy
from pipelines.frame.inputs import open_prompts, open_subset, open_tokenizer
from pipelines.frame.progress import progress
from pipelines.frame.stage import Stage, StagePlan, run_stage
from vapi_core import distributed
from vapi_core.data.cache import write_token_cache
from vapi_core.data.images import encode_images, images_of_a_pass
from vapi_core.data.subset import subset_hash
from vapi_core.models.checkpoints import model_hash
from vapi_core.models.families import FAMILIES


def plan(params, arguments) -> StagePlan:
    captions = {} if params.captions is None else asdict(params.captions)
    return StagePlan("tokenize", TOKENS, captions, (SUBSET, TOKENIZER))


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    subset = open_subset()
    tokenizer = open_tokenizer(stage.device)
    started = time.monotonic()
    mine = distributed.share(subset.images)
    batch = images_of_a_pass(subset.image_size)
    with progress("tokenize", len(mine), "images") as advance:

        def batches():
            for start in range(0, len(mine), batch):
                images = mine[start : start + batch]
                yield encode_images(tokenizer, images, stage.device, batch)
                advance(len(images))

        write_token_cache(
            TOKENS,
            batches(),
            subset.labels,
            subset.splits,
            grid=grid_side(stage.params),
            codebook_size=tokenizer.config.codebook_size,
            tokenizer_sha256=model_hash(TOKENIZER, "tokenizer"),
            subset_sha256=subset_hash(SUBSET, remedy(SUBSET)),
        )
    stage.metrics["images_per_second"] = len(subset.images) / (time.monotonic() - started)
    if stage.params.captions is not None and distributed.is_main():
        assert subset.captions is not None
        prompts = [prompt.text for prompt in open_prompts()]
        trained = subset.captions[slice(*subset.splits["train"])]
        encode_texts([*subset.captions, *prompts], trained, stage)


def encode_texts(texts: Sequence[str], trained: Sequence[str], stage: Stage) -> None:
    """Writes what the conditions of these texts are made of.

    Args:
        trained: those of the training split, by which features are standardized.
    """
    config = stage.params.captions
    assert config is not None
    family = FAMILIES[stage.params.generator.family]
    with progress("captions", len(set(texts)), "captions") as advance:
        stage.metrics |= family.write_texts(CAPTIONS, texts, trained, config, stage.device, advance)


def main(arguments: list[str]) -> int:
    """Runs the stage; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages tokenize")
    return run_stage(plan, work, parser.parse_args(arguments), parallel=True)
