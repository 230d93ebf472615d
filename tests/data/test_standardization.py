import numpy as np
import pytest
import torch

from tests.tiny import write_tiny_t5
from vapi_core.data.captions import CaptionCache, write_caption_cache
from vapi_core.data.standardization import FILE, Standardization, measure_features, standardize
from vapi_core.errors import FileError
from vapi_core.models.captions import encode_captions, load_flan_t5

CAPTIONS = ["a green cat", "a photo of two red dogs", "a cat", "a green cat", "the blue dog left of the cat"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_flan_t5(write_tiny_t5(tmp_path_factory.mktemp("t5")), limit=9, dtype=torch.float32)


def own_tokens(encoder, captions):
    batch = encode_captions(encoder, captions, truncate=False)
    return batch.features[batch.mask]  # [R, D]


def test_tokens_of_the_measured_captions_have_mean_zero_and_variance_one(encoder):
    standardized = standardize(encoder, measure_features(encoder, CAPTIONS, batch_size=2))
    rows = own_tokens(standardized, sorted(set(CAPTIONS)))
    assert torch.allclose(rows.mean(0), torch.zeros(16), atol=1e-5)
    assert torch.allclose(rows.var(0, unbiased=False), torch.ones(16), atol=1e-4)


def test_other_captions_are_standardized_by_the_same_numbers(encoder):
    by = measure_features(encoder, CAPTIONS)
    rows, expected = (own_tokens(e, ["two dogs"]) for e in (standardize(encoder, by), encoder))
    assert torch.allclose(rows, (expected - torch.from_numpy(by.mean)) / torch.from_numpy(by.deviation), atol=1e-6)


def test_a_dimension_that_hardly_varies_is_not_blown_up(encoder):
    by = measure_features(encoder, ["a cat"])
    alone = own_tokens(encoder, ["a cat"]).numpy()
    still = alone.std(0) < 0.1 * alone.std(0).mean()
    assert np.allclose(by.deviation[~still], alone.std(0)[~still], atol=1e-6)
    assert (by.deviation[still] > alone.std(0)[still]).all() and (by.deviation > 0).all()


def test_it_is_another_encoder_and_its_cache_is_not_taken_for_that_of_the_plain_one(tmp_path, encoder):
    standardized = standardize(encoder, measure_features(encoder, CAPTIONS))
    write_caption_cache(tmp_path / "captions", CAPTIONS, standardized, truncate=False)
    CaptionCache.open(tmp_path / "captions", encoder_fingerprint=standardized.fingerprint)
    with pytest.raises(FileError, match="made with"):
        CaptionCache.open(tmp_path / "captions", encoder_fingerprint=encoder.fingerprint)


def test_what_was_measured_is_kept_beside_the_cache(tmp_path, encoder):
    by = measure_features(encoder, CAPTIONS)
    by.save(tmp_path)
    kept = Standardization.open(tmp_path, 16)
    assert np.array_equal(kept.mean, by.mean) and np.array_equal(kept.deviation, by.deviation)
    (tmp_path / FILE).unlink()
    with pytest.raises(FileError, match="dvc repro tokenize"):
        Standardization.open(tmp_path, 16)
