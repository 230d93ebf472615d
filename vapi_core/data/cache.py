"""The token cache: the tokens of a whole subset as one memory-mapped array, tied to the tokenizer that made them.

A cache is a directory of `tokens.npy` (uint16 or uint32 [N, T], T = grid * grid, row-major), `labels.npy` (int64 [N])
and `manifest.json`. Its rows and splits are those of the subset. LlamaGen's own cache is a file per image.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vapi_core import distributed
from vapi_core.data.subset import (
    MANIFEST,
    entries_of,
    find_split,
    open_array,
    read_manifest,
    read_splits,
    write_manifest,
)
from vapi_core.errors import FileError

REMEDY = "To make it anew, run `dvc repro tokenize`."


def token_dtype(codebook_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smaller of uint16 and uint32 that holds every token of the codebook."""
    return np.uint16 if codebook_size <= 2**16 else np.uint32


def write_token_cache(
    directory: Path | str,
    batches: Iterable[np.ndarray],
    labels: np.ndarray,
    splits: Mapping[str, tuple[int, int]],
    *,
    grid: int,
    codebook_size: int,
    tokenizer_sha256: str,
    subset_sha256: str,
) -> None:
    """Writes a token cache batch by batch, so that memory does not grow with the number of images.

    Args:
        batches: integer arrays [B, T] of any batch size; their rows in all are the images of the subset, in its order;
            of several processes, each brings its share (`vapi_core.distributed.share`).
        labels: int64 [N], `Subset.labels`.
        splits: first row and one past the last row by name, `Subset.splits`.
        grid: tokens along one side of an image.
        tokenizer_sha256: hash of the tokenizer's weights, asked for again by `TokenCache.open`.
        subset_sha256: `subset_hash` of the images.
    """
    count, dtype = len(labels), token_dtype(codebook_size)
    row = distributed.share_start(count)
    with distributed.shared_path(directory) as temporary:
        if distributed.is_main():
            temporary.mkdir(exist_ok=True)  # a killed process of the same id may have left one
            distributed.create_array(temporary / "tokens.npy", (count, grid * grid), dtype)
        distributed.barrier()
        for tokens in batches:
            assert tokens.min() >= 0 and tokens.max() < codebook_size, "a token is not in the codebook"
            distributed.write_rows(temporary / "tokens.npy", row, tokens.astype(dtype))
            row += len(tokens)
        assert row == distributed.share_start(count, distributed.rank() + 1), "not every image has its tokens"
        distributed.barrier()
        if not distributed.is_main():
            return
        np.save(temporary / "labels.npy", labels.astype(np.int64))
        manifest = {
            "kind": "tokens",
            "count": count,
            "shape": [count, grid * grid],
            "dtype": np.dtype(dtype).name,
            "grid": grid,
            "codebook_size": codebook_size,
            "tokenizer_sha256": tokenizer_sha256,
            "subset_sha256": subset_sha256,
            "splits": {name: list(bounds) for name, bounds in splits.items()},
        }
        write_manifest(temporary, manifest, ("tokens.npy", "labels.npy"))


@dataclass(frozen=True)
class TokenCache:
    """A token cache on disk. `tokens` is a read-only memory map: copy the batch that is needed, as int64 for torch."""

    directory: Path
    tokens: np.ndarray  # uint16 or uint32 [N, T]
    labels: np.ndarray  # int64 [N]
    grid: int
    codebook_size: int
    splits: dict[str, tuple[int, int]]  # name -> first row, one past the last

    @classmethod
    def open(cls, directory: Path | str, *, tokenizer_sha256: str, subset_sha256: str | None = None) -> "TokenCache":
        """Opens what `write_token_cache` wrote, after hashing its files again (1 GB in about a second).

        Args:
            tokenizer_sha256: hash of the tokenizer that is to read the tokens.
            subset_sha256: `subset_hash` of the images that are to go with the tokens, if there are any.

        Raises:
            FileError: a file is missing or damaged, or it was made with another tokenizer or from another subset.
        """
        directory = Path(directory)
        path = directory / MANIFEST
        manifest = read_manifest(path, "tokens", REMEDY)
        with entries_of(path, REMEDY):
            grid, codebook_size, count = (operator.index(manifest[name]) for name in ("grid", "codebook_size", "count"))
            shape = tuple(map(operator.index, manifest["shape"]))
            made_with, made_from = str(manifest["tokenizer_sha256"]), str(manifest["subset_sha256"])
            splits, dtype = read_splits(manifest), token_dtype(codebook_size)
            tokens_sha256, labels_sha256 = (manifest["sha256"][name] for name in ("tokens.npy", "labels.npy"))
        if made_with != tokenizer_sha256:
            difference = f"made with tokenizer {made_with[:12]}, but read with tokenizer {tokenizer_sha256[:12]}"
            raise FileError(directory, f"the token cache was {difference}.", REMEDY)
        if subset_sha256 is not None and made_from != subset_sha256:
            difference = f"made from subset {made_from[:12]}, but read with subset {subset_sha256[:12]}"
            raise FileError(directory, f"the token cache was {difference}.", REMEDY)
        tokens = open_array(directory / "tokens.npy", shape, dtype, REMEDY, tokens_sha256)
        labels = np.array(open_array(directory / "labels.npy", (count,), np.int64, REMEDY, labels_sha256))
        return cls(directory, tokens, labels, grid, codebook_size, splits)

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Views of one split: tokens [n, T] and labels int64 [n].

        Raises:
            FileError: the cache has no such split.
        """
        part = find_split(self.directory, self.splits, name)
        return self.tokens[part], self.labels[part]
