import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.damage import check_every_flip_is_named
from vapi_core.data.cache import TokenCache, write_token_cache
from vapi_core.errors import FileError
from vapi_core.files import read_checked_json, sha256_file, write_checked_json

REMEDY = "Make it anew."

TOKENIZER = "a1b2c3d4e5f6" + "0" * 52
SUBSET = "123456789abc" + "0" * 52
TOKENS = np.random.default_rng(0).integers(0, 256, (10, 16))
LABELS = np.arange(10) % 3
SPLITS = {"train": (0, 7), "heldout": (7, 10)}


def write(directory: Path, tokens: np.ndarray = TOKENS, batch: int = 4, codebook_size: int = 256) -> None:
    write_token_cache(
        directory,
        (tokens[start : start + batch] for start in range(0, len(tokens), batch)),
        LABELS,
        SPLITS,
        grid=4,
        codebook_size=codebook_size,
        tokenizer_sha256=TOKENIZER,
        subset_sha256=SUBSET,
    )


@pytest.fixture
def directory(tmp_path):
    write(tmp_path / "tokens")
    return tmp_path / "tokens"


def test_what_is_written_is_read_again(directory):
    cache = TokenCache.open(directory, tokenizer_sha256=TOKENIZER)
    assert (cache.tokens == TOKENS).all() and cache.labels.tolist() == LABELS.tolist()
    assert (cache.grid, cache.codebook_size, cache.splits) == (4, 256, SPLITS)


def test_a_split_is_a_view_of_its_tokens_and_labels(directory):
    cache = TokenCache.open(directory, tokenizer_sha256=TOKENIZER)
    tokens, labels = cache.split("heldout")
    assert (tokens == TOKENS[7:]).all() and labels.tolist() == LABELS[7:].tolist()
    assert np.shares_memory(tokens, cache.tokens)
    with pytest.raises(FileError, match="'test'.*train, heldout"):
        cache.split("test")


def test_the_manifest_says_what_the_tokens_are_and_what_they_were_made_from(directory):
    assert read_checked_json(directory / "manifest.json") == {
        "kind": "tokens",
        "count": 10,
        "shape": [10, 16],
        "dtype": "uint16",
        "grid": 4,
        "codebook_size": 256,
        "tokenizer_sha256": TOKENIZER,
        "subset_sha256": SUBSET,
        "splits": {"train": [0, 7], "heldout": [7, 10]},
        "sha256": {name: sha256_file(directory / name) for name in ("tokens.npy", "labels.npy")},
    }


def test_the_bytes_do_not_depend_on_the_batch_size(directory, tmp_path):
    write(tmp_path / "one-by-one", batch=1)
    for name in ("tokens.npy", "labels.npy", "manifest.json"):
        assert (tmp_path / "one-by-one" / name).read_bytes() == (directory / name).read_bytes()


@pytest.mark.parametrize(("codebook_size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_the_largest_token_fits_the_type_of_the_array(tmp_path, codebook_size, dtype):
    write(tmp_path / "tokens", np.full((10, 16), codebook_size - 1), codebook_size=codebook_size)
    tokens = TokenCache.open(tmp_path / "tokens", tokenizer_sha256=TOKENIZER).tokens
    assert tokens.dtype == dtype and (tokens == codebook_size - 1).all()


@pytest.mark.parametrize("tokens", [TOKENS + 1, TOKENS - 1, TOKENS[:9], TOKENS[:, :9]])
def test_tokens_outside_the_codebook_and_missing_rows_or_columns_are_never_written(tmp_path, tokens):
    assert TOKENS.min() == 0 and TOKENS.max() == 255
    with pytest.raises(AssertionError):
        write(tmp_path / "tokens", tokens)
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_is_refused_with_both_hashes(directory):
    with pytest.raises(FileError, match="a1b2c3d4e5f6, .* ffffffffffff.*Make it anew."):
        TokenCache.open(directory, tokenizer_sha256="f" * 64, remedy=REMEDY)


def test_tokens_of_another_subset_are_refused_where_images_go_with_them(directory):
    TokenCache.open(directory, tokenizer_sha256=TOKENIZER, subset_sha256=SUBSET)
    with pytest.raises(FileError, match="123456789abc, .* eeeeeeeeeeee.*Make it anew."):
        TokenCache.open(directory, tokenizer_sha256=TOKENIZER, subset_sha256="e" * 64, remedy=REMEDY)


@pytest.mark.parametrize("name", ["tokens.npy", "labels.npy", "manifest.json"])
def test_a_missing_or_cut_off_file_is_named_with_the_remedy(directory, name):
    content = (directory / name).read_bytes()
    for damaged in (content[:-5], content[:50], b""):
        (directory / name).write_bytes(damaged)
        with pytest.raises(FileError, match=f"{name}.*Make it anew."):
            TokenCache.open(directory, tokenizer_sha256=TOKENIZER, remedy=REMEDY)
    (directory / name).unlink()
    with pytest.raises(FileError, match=f"{name}: the file is missing.*Make it anew."):
        TokenCache.open(directory, tokenizer_sha256=TOKENIZER, remedy=REMEDY)


@pytest.mark.parametrize("name", ["tokens.npy", "labels.npy", "manifest.json"])
def test_whatever_byte_flips_the_file_is_named_and_no_other(directory, name):
    def read():
        TokenCache.open(directory, tokenizer_sha256=TOKENIZER, subset_sha256=SUBSET, remedy=REMEDY)

    check_every_flip_is_named(directory / name, read)


def test_a_manifest_that_lacks_an_entry_is_refused(directory):
    manifest = read_checked_json(directory / "manifest.json")
    del manifest["tokenizer_sha256"]
    write_checked_json(directory / "manifest.json", manifest)
    with pytest.raises(FileError, match="manifest.json.*tokenizer_sha256.*Make it anew."):
        TokenCache.open(directory, tokenizer_sha256=TOKENIZER, remedy=REMEDY)


KEYS = ("count", "shape", "grid", "codebook_size", "tokenizer_sha256", "subset_sha256", "splits", "sha256")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, "five", [], {}])
def test_an_entry_of_the_manifest_that_is_missing_or_of_another_type_is_refused(directory, key, value):
    manifest = read_checked_json(directory / "manifest.json")
    changed = {name: entry for name, entry in manifest.items() if name != key} | ({} if value is None else {key: value})
    write_checked_json(directory / "manifest.json", changed)
    with pytest.raises(FileError, match=REMEDY):
        TokenCache.open(directory, tokenizer_sha256=TOKENIZER, subset_sha256=SUBSET, remedy=REMEDY)


def test_a_failure_halfway_leaves_the_old_cache_and_nothing_else(directory, tmp_path):
    before = shutil.copytree(directory, tmp_path / "before")

    def batches() -> Iterator[np.ndarray]:
        yield TOKENS[:4]
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        write_token_cache(
            directory,
            batches(),
            LABELS,
            SPLITS,
            grid=4,
            codebook_size=300,
            tokenizer_sha256=TOKENIZER,
            subset_sha256=SUBSET,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "tokens"]
    assert (directory / "manifest.json").read_bytes() == (before / "manifest.json").read_bytes()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    batch = np.zeros((100, 256), dtype=np.int64)
    tracemalloc.start()
    try:
        write_token_cache(
            tmp_path / "tokens",
            (batch for _ in range(100)),  # 10,000 images, 5 MB as uint16
            np.zeros(10_000, dtype=np.int64),
            {"train": (0, 10_000)},
            grid=16,
            codebook_size=256,
            tokenizer_sha256=TOKENIZER,
            subset_sha256=SUBSET,
        )
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
