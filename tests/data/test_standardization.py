from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.damage import check_every_flip_is_named
from tests.tiny import write_tiny_t5
from vapi_core.data.captions import CaptionCache, write_caption_cache
from vapi_core.data.standardization import FILE, HASH_FILE, Standardization, measure_features, standardize
from vapi_core.errors import FileError
from vapi_core.models.captions import LongCaptionError, encode_captions, load_flan_t5

CAPTIONS = ["a green cat", "a photo of two red dogs", "a cat", "a green cat", "the blue dog left of the cat"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_flan_t5(write_tiny_t5(tmp_path_factory.mktemp("t5")), limit=9, dtype=torch.float32)


def own_tokens(encoder, captions):
    batch = encode_captions(encoder, captions, truncate=False)
    return batch.features[batch.mask]  # [R, D]


def test_tokens_of_the_measured_captions_have_mean_zero_and_variance_one(encoder):
    standardized = standardize(encoder, measure_features(encoder, CAPTIONS, truncate=False, batch_size=2))
    rows = own_tokens(standardized, sorted(set(CAPTIONS)))
    assert torch.allclose(rows.mean(0), torch.zeros(16), atol=1e-5)
    assert torch.allclose(rows.var(0, unbiased=False), torch.ones(16), atol=1e-4)


def test_other_captions_are_standardized_by_the_same_numbers(encoder):
    by = measure_features(encoder, CAPTIONS, truncate=False)
    rows, expected = (own_tokens(e, ["two dogs"]) for e in (standardize(encoder, by), encoder))
    assert torch.allclose(rows, (expected - torch.from_numpy(by.mean)) / torch.from_numpy(by.deviation), atol=1e-6)


class WithStillDimension(torch.nn.Module):
    """An encoder's model whose first dimension hardly varies."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        features = self.model(**inputs).last_hidden_state.clone()
        features[..., 0] *= 1e-3
        return SimpleNamespace(last_hidden_state=features)


def test_a_dimension_that_hardly_varies_is_not_blown_up(encoder):
    still = replace(encoder, model=WithStillDimension(encoder.model))
    own = own_tokens(still, sorted(set(CAPTIONS))).std(0, unbiased=False).numpy()
    by = measure_features(still, CAPTIONS, truncate=False)
    np.testing.assert_allclose(by.deviation[1:], own[1:], rtol=1e-4)
    assert by.deviation[0] == pytest.approx(0.1 * own.mean(), rel=1e-4) and by.deviation[0] > 10 * own[0]


def test_a_caption_that_is_too_long_is_refused_unless_it_may_be_cut_off(encoder):
    long = [*CAPTIONS, "a photo of two green cats left of three red dogs"]
    with pytest.raises(LongCaptionError, match="1 of 5 captions have more than 9 tokens"):
        measure_features(encoder, long, truncate=False)
    measure_features(encoder, long, truncate=True)


def test_it_is_another_encoder_and_its_cache_is_not_taken_for_that_of_the_plain_one(tmp_path, encoder):
    standardized = standardize(encoder, measure_features(encoder, CAPTIONS, truncate=False))
    write_caption_cache(tmp_path / "captions", CAPTIONS, standardized, truncate=False)
    CaptionCache.open(tmp_path / "captions", encoder_fingerprint=standardized.fingerprint)
    with pytest.raises(FileError, match="made with"):
        CaptionCache.open(tmp_path / "captions", encoder_fingerprint=encoder.fingerprint)


def test_what_was_measured_is_kept_beside_the_cache(tmp_path, encoder):
    by = measure_features(encoder, CAPTIONS, truncate=False)
    by.save(tmp_path)
    kept = Standardization.open(tmp_path, 16)
    assert np.array_equal(kept.mean, by.mean) and np.array_equal(kept.deviation, by.deviation)
    for name in (FILE, HASH_FILE):
        check_every_flip_is_named(tmp_path / name, lambda: Standardization.open(tmp_path, 16))
    (tmp_path / FILE).unlink()
    with pytest.raises(FileError, match="dvc repro tokenize"):
        Standardization.open(tmp_path, 16)
