import numpy as np
import pytest
import torch

from tests.damage import check_every_flip_is_named
from tests.tiny import write_tiny_t5
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import read_checked_json, read_json, write_checked_json
from vapi_core.models.captions.cache import CaptionCache, CaptionConditions, caption_hash, write_caption_cache
from vapi_core.models.captions.encoders import LongCaptionError, encode_captions, load_flan_t5

REMEDY = "Make it anew."

CAPTIONS = ["a green cat", "a photo of two red dogs", "a cat", "a green cat", "the blue dog left of the cat"]
LONG = "a photo of two green cats left of three red dogs"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_flan_t5(write_tiny_t5(tmp_path_factory.mktemp("t5")), limit=9, dtype=torch.float32)


@pytest.fixture
def directory(tmp_path, encoder):
    write_caption_cache(tmp_path / "captions", CAPTIONS, encoder, truncate=False, batch_size=2)
    return tmp_path / "captions"


def open_cache(directory, encoder) -> CaptionCache:
    return CaptionCache.open(directory, encoder_fingerprint=encoder.fingerprint, remedy=REMEDY)


def test_a_batch_of_the_cache_is_what_the_encoder_says_left_padded(directory, encoder):
    cache = open_cache(directory, encoder)
    batch = cache.batch(cache.rows(CAPTIONS), torch.device("cpu"))
    expected = encode_captions(encoder, CAPTIONS, truncate=False)
    assert batch.features.dtype == torch.float16 and torch.equal(batch.mask, expected.mask)
    assert torch.allclose(batch.features.float(), expected.features, atol=2e-3)
    assert not batch.features[~batch.mask].any()


def test_float32_is_kept_whole(tmp_path, encoder):
    write_caption_cache(tmp_path / "captions", CAPTIONS, encoder, truncate=False, dtype="float32")
    cache = open_cache(tmp_path / "captions", encoder)
    batch = cache.batch(cache.rows(CAPTIONS), torch.device("cpu"))
    assert torch.allclose(batch.features, encode_captions(encoder, CAPTIONS, truncate=False).features, atol=1e-6)


def test_equal_captions_are_stored_once_and_only_their_own_tokens(directory, encoder):
    cache = open_cache(directory, encoder)
    assert len(cache.row_of) == 4 and cache.rows(CAPTIONS)[0] == cache.rows(CAPTIONS)[3]
    assert cache.features.shape == (3 + 4 + 7 + 8, 16)
    assert set(cache.row_of) == {caption_hash(caption) for caption in CAPTIONS}


def test_the_report_counts_captions_tokens_and_speed_and_progress_sees_every_caption(tmp_path, encoder):
    done: list[int] = []
    report = write_caption_cache(
        tmp_path / "captions", CAPTIONS, encoder, truncate=False, batch_size=3, advance=done.append
    )
    assert (report.captions, report.unique, report.tokens, report.truncated) == (5, 4, 22, [])
    assert report.tokens_per_second == pytest.approx(report.captions_per_second * 22 / 4) and done == [3, 1]


def test_the_bytes_depend_neither_on_the_order_of_the_captions_nor_on_the_number_of_runs(directory, encoder, tmp_path):
    write_caption_cache(tmp_path / "again", CAPTIONS[::-1], encoder, truncate=False, batch_size=2)
    for name in ("features.npy", "offsets.npy", "hashes.npy", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes()


def test_a_long_caption_stops_the_writing_unless_it_may_be_cut_off_and_then_the_manifest_names_it(tmp_path, encoder):
    with pytest.raises(LongCaptionError, match="1 of 5 captions have more than 9 tokens"):
        write_caption_cache(tmp_path / "captions", [*CAPTIONS, LONG], encoder, truncate=False)
    assert list(tmp_path.iterdir()) == []
    report = write_caption_cache(tmp_path / "captions", [*CAPTIONS, LONG], encoder, truncate=True)
    assert [(long.caption, long.tokens) for long in report.truncated] == [(LONG, 12)]
    assert read_json(tmp_path / "captions" / "manifest.json")["truncated"] == [{"caption": LONG, "tokens": 12}]
    cache = open_cache(tmp_path / "captions", encoder)
    batch = cache.batch(cache.rows([LONG]), torch.device("cpu"))
    expected = encode_captions(encoder, [LONG], truncate=True)
    assert batch.mask.all() and torch.allclose(batch.features.float(), expected.features, atol=2e-3)


def test_another_encoder_is_refused_with_both_fingerprints(directory, encoder):
    with pytest.raises(FileError, match=f"{encoder.fingerprint[:12]}, .* ffffffffffff.*Make it anew."):
        CaptionCache.open(directory, encoder_fingerprint="f" * 64, remedy=REMEDY)
    assert CaptionCache.open(directory, encoder_fingerprint=None).encoder_fingerprint == encoder.fingerprint


def test_captions_that_are_not_in_the_cache_are_counted_and_the_first_is_named(directory, encoder):
    with pytest.raises(FileError, match='2 of 3 captions are not in the cache, "a bird" first.*Make it anew.'):
        open_cache(directory, encoder).rows(["a cat", "a bird", "a cat "])


@pytest.mark.parametrize("name", ["features.npy", "offsets.npy", "hashes.npy", "manifest.json"])
def test_a_missing_or_damaged_file_is_named_with_the_remedy(directory, encoder, name):
    content = (directory / name).read_bytes()
    changed = bytearray(content)
    changed[-3] ^= 1
    for damaged in (content[:-5], content[:50], b"", bytes(changed)):
        (directory / name).write_bytes(damaged)
        with pytest.raises(FileError, match=f"{name}.*Make it anew."):
            open_cache(directory, encoder)
    (directory / name).unlink()
    with pytest.raises(FileError, match=f"{name}: the file is missing.*Make it anew."):
        open_cache(directory, encoder)


@pytest.mark.parametrize("name", ["features.npy", "offsets.npy", "hashes.npy", "manifest.json"])
def test_whatever_byte_flips_the_file_is_named(directory, encoder, name):
    check_every_flip_is_named(directory / name, lambda: open_cache(directory, encoder))


@pytest.mark.parametrize("key", ["count", "shape", "dtype", "limit", "encoder_fingerprint", "sha256"])
@pytest.mark.parametrize("value", [None, "five", [], {}])
def test_an_entry_of_the_manifest_that_is_missing_or_of_another_type_is_refused(directory, encoder, key, value):
    manifest = read_checked_json(directory / "manifest.json")
    changed = {name: entry for name, entry in manifest.items() if name != key} | ({} if value is None else {key: value})
    write_checked_json(directory / "manifest.json", changed)
    with pytest.raises(FileError, match=REMEDY):
        open_cache(directory, encoder)


def test_features_too_large_for_float16_are_refused_and_leave_nothing(tmp_path, encoder, monkeypatch):
    weight = encoder.model.encoder.final_layer_norm.weight
    monkeypatch.setattr(weight, "data", weight.data * 1e6)
    with pytest.raises(ParameterError, match=r"captions\.dtype.*float16; use float32"):
        write_caption_cache(tmp_path / "captions", CAPTIONS, encoder, truncate=False)
    assert list(tmp_path.iterdir()) == []


def test_conditions_are_the_captions_of_the_images_that_were_asked_for(directory, encoder):
    cache = open_cache(directory, encoder)
    conditions = CaptionConditions(cache, cache.rows(CAPTIONS))
    batch = conditions.batch(np.array([4, 0]), torch.device("cpu"))
    assert len(conditions) == 5 and batch.mask.sum(1).tolist() == [8, 4]
    assert torch.equal(batch.features[1], cache.batch(cache.rows(["a green cat"]), torch.device("cpu")).features[0])
