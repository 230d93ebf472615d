"""Stage `tokenize`: the token cache of the whole subset; for text to image the text features of its captions too."""

import argparse
import time
from collections.abc import Sequence

import torch

from pipelines.config.params import CaptionParams, grid_side
from pipelines.config.paths import CAPTIONS, SUBSET, TOKENIZER, TOKENS
from pipelines.inputs import open_prompts, open_tokenizer
from pipelines.progress import progress
from pipelines.stage import Stage, StagePlan, run_stage
from vapi_core import distributed
from vapi_core.data.cache import write_token_cache
from vapi_core.data.images import encode_images, images_of_a_pass
from vapi_core.data.subset import Subset, subset_hash
from vapi_core.models.captions.cache import write_caption_cache
from vapi_core.models.captions.encoders import FLAN_T5_XL, TextEncoder, load_flan_t5, load_minilm
from vapi_core.models.captions.standardization import measure_features, standardize
from vapi_core.models.checkpoints import model_hash
from vapi_core.models.janus.prompts import JANUS_PRO_1B, load_prompt_tokenizer


def plan(params, arguments) -> StagePlan:
    captions = {} if params.captions is None else params.captions.model_dump()
    return StagePlan("tokenize", TOKENS, captions, (SUBSET, TOKENIZER))


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    subset = Subset.open(SUBSET)
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
            subset_sha256=subset_hash(SUBSET),
        )
    stage.metrics["images_per_second"] = len(subset.images) / (time.monotonic() - started)
    if stage.params.captions is not None and distributed.is_main():
        assert subset.captions is not None
        prompts = [prompt.text for prompt in open_prompts()]
        trained = subset.captions[slice(*subset.splits["train"])]
        encode_texts([*subset.captions, *prompts], trained, stage.params.captions, stage)


def open_encoder(params: CaptionParams, device: torch.device) -> TextEncoder:
    if params.encoder == "minilm":
        return load_minilm(limit=params.tokens, device=device)
    return load_flan_t5(params.checkpoint or FLAN_T5_XL, limit=params.tokens, device=device)


def encode_texts(texts: Sequence[str], trained: Sequence[str], params: CaptionParams, stage: Stage) -> None:
    """Writes the text features; equal texts are encoded once. A Janus reads the texts themselves: its tokenizer.

    Args:
        trained: those of the training split, by which features are standardized.
    """
    if params.encoder == "janus":
        tokenizer = load_prompt_tokenizer(params.checkpoint or JANUS_PRO_1B)
        lengths = tokenizer.check_length(list(dict.fromkeys(texts)), params.tokens)
        tokenizer.save(CAPTIONS)
        stage.metrics |= {"captions": len(lengths), "longest_prompt": max(lengths)}
        return
    encoder = open_encoder(params, stage.device)
    measured = measure_features(encoder, trained, truncate=params.truncate) if params.standardize else None
    if measured is not None:
        encoder = standardize(encoder, measured)
    with progress("captions", len(set(texts)), "captions") as advance:
        report = write_caption_cache(
            CAPTIONS, texts, encoder, truncate=params.truncate, dtype=params.dtype, advance=advance
        )
    if measured is not None:
        measured.save(CAPTIONS)
    stage.metrics |= {
        "captions": report.unique,
        "captions_truncated": len(report.truncated),
        "captions_per_second": report.captions_per_second,
        "caption_tokens_per_second": report.tokens_per_second,
    }


if __name__ == "__main__":
    run_stage(plan, work, parallel=True)
