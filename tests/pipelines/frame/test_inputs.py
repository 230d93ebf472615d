"""Stages that read several outputs name the one that is damaged."""

import numpy as np
import pytest
import torch

from pipelines.config.paths import SUBSET, TOKENIZER, TOKENS
from pipelines.frame.inputs import open_split
from tests.damage import check_every_flip_is_named
from tests.tiny import tiny_tokenizer
from vapi_core.data.cache import write_token_cache
from vapi_core.data.sources import ImageSource
from vapi_core.data.subset import Subset, plan_subset, subset_hash, write_subset
from vapi_core.models.checkpoints import model_hash, save_model


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """A subset of ten images, a tokenizer, and tokens that were made of both."""
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 3), dtype=np.uint8)
    source = ImageSource(
        "made-up", 12, ("a", "b"), tuple(map(str, range(10))), np.arange(10) % 2, lambda index: images[index]
    )
    write_subset(source, plan_subset(source.labels, source.classes, {"train": 10}, 0), SUBSET)
    save_model(TOKENIZER, "tokenizer", tiny_tokenizer(levels=3))
    subset = Subset.open(SUBSET)
    write_token_cache(
        TOKENS,
        [np.zeros((10, 9), np.int64)],
        subset.labels,
        subset.splits,
        grid=3,
        codebook_size=24,
        tokenizer_sha256=model_hash(TOKENIZER, "tokenizer"),
        subset_sha256=subset_hash(SUBSET),
    )


@pytest.mark.parametrize(
    "path",
    [SUBSET / name for name in ("manifest.json", "images.npy", "labels.npy")]
    + [TOKENS / name for name in ("manifest.json", "tokens.npy", "labels.npy")],
    ids=str,
)
def test_whatever_byte_flips_the_file_is_named_and_nothing_made_of_it(outputs, path):
    check_every_flip_is_named(path, lambda: open_split("train", torch.device("cpu"), "llamagen"))
