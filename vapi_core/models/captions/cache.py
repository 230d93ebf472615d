"""The caption cache: text features of many captions as one memory-mapped array, tied to the encoder that made them.

A cache is a directory of `features.npy` (float16 or float32 [R, D], the features of all captions' own tokens one after
the other, without padding), `offsets.npy` (int64 [U + 1], where each caption begins and the last one ends),
`hashes.npy` (uint8 [U, 32], sha256 of each caption) and `manifest.json`. Equal captions are stored once. LlamaGen has a
float32 file per image, 120 tokens or fewer.
"""

import hashlib
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vapi_core.arrays import MANIFEST, array_writer, entries_of, open_array, read_manifest, write_manifest
from vapi_core.errors import FileError
from vapi_core.files import atomic_path
from vapi_core.models.captions.encoders import (
    LongCaption,
    LongCaptionError,
    TextEncoder,
    count_tokens,
    encode_padded,
    find_long,
    valid_features,
)
from vapi_core.models.policy import Captions

FILES = ("features.npy", "offsets.npy", "hashes.npy")
DTYPES: dict[str, type[np.floating]] = {"float16": np.float16, "float32": np.float32}


@dataclass(frozen=True)
class CaptionCacheReport:
    """What writing a cache came to."""

    captions: int  # as given
    unique: int
    tokens: int  # features stored
    truncated: list[LongCaption]  # every caption that was cut off
    captions_per_second: float  # unique ones, tokenization to disk
    tokens_per_second: float


def caption_hash(caption: str) -> bytes:
    """Sha256 of a caption as it stands, before any cleaning."""
    return hashlib.sha256(caption.encode()).digest()


def write_caption_cache(
    directory: Path | str,
    captions: Sequence[str],
    encoder: TextEncoder,
    *,
    truncate: bool,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 64,
    advance: Callable[[int], object] = lambda count: None,
) -> CaptionCacheReport:
    """Encodes captions and writes a cache of them. Short ones come first, so that batches hold little padding.

    Args:
        truncate: whether captions above the encoder's limit are cut off, as LlamaGen does; the manifest names them.
        advance: is told how many captions were done since the last call.

    Raises:
        LongCaptionError: captions are above the limit and may not be cut off; nothing is encoded.
        ParameterError: a feature does not fit into `dtype`.
    """
    started = time.monotonic()
    unique = list(dict.fromkeys(captions))
    counts = count_tokens(encoder, unique)
    long = find_long(encoder, unique, counts)
    if long and not truncate:
        raise LongCaptionError(long, len(unique), encoder.limit)
    order = sorted(range(len(unique)), key=lambda i: (counts[i], unique[i]))
    stored = [unique[i] for i in order]
    sizes = [min(counts[i], encoder.limit) for i in order]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    rows = int(offsets[-1])
    with atomic_path(directory) as temporary:
        temporary.mkdir(exist_ok=True)  # a killed process of the same id may have left one
        with array_writer(temporary / "features.npy", (rows, encoder.dim), DTYPES[dtype]) as append:
            for start in range(0, len(stored), batch_size):
                batch = stored[start : start + batch_size]
                features = valid_features(*encode_padded(encoder, batch), DTYPES[dtype])
                assert [len(f) for f in features] == sizes[start : start + batch_size]
                append(np.concatenate(features))
                advance(len(batch))
        np.save(temporary / "offsets.npy", offsets)
        hashes = np.frombuffer(b"".join(map(caption_hash, stored)), dtype=np.uint8).reshape(-1, 32)
        np.save(temporary / "hashes.npy", hashes)
        manifest = {
            "kind": "captions",
            "count": len(stored),
            "shape": [rows, encoder.dim],
            "dtype": dtype,
            "limit": encoder.limit,
            "encoder": encoder.name,
            "encoder_fingerprint": encoder.fingerprint,
            "truncated": [asdict(caption) for caption in long],
        }
        write_manifest(temporary, manifest, FILES)
    seconds = max(time.monotonic() - started, 1e-9)
    return CaptionCacheReport(len(captions), len(stored), rows, long, len(stored) / seconds, rows / seconds)


@dataclass(frozen=True)
class CaptionCache:
    """A caption cache on disk. `features` is a read-only memory map."""

    directory: Path
    features: np.ndarray  # float16 or float32 [R, D]
    offsets: np.ndarray  # int64 [U + 1]
    row_of: dict[bytes, int]  # hash of a caption -> its number 0..U-1
    limit: int  # C
    encoder_fingerprint: str
    remedy: str = ""  # what makes the cache anew, for error messages

    @classmethod
    def open(cls, directory: Path | str, *, encoder_fingerprint: str | None, remedy: str = "") -> "CaptionCache":
        """Opens what `write_caption_cache` wrote, after hashing its files again.

        Args:
            encoder_fingerprint: of the encoder that the features are used as those of; None only where nothing says
                which one the generator knows.
            remedy: what makes the cache anew, for error messages.

        Raises:
            FileError: a file is missing or damaged, or another encoder made the features.
        """
        directory = Path(directory)
        path = directory / MANIFEST
        manifest = read_manifest(path, "captions", remedy)
        with entries_of(path, remedy):
            count, limit = operator.index(manifest["count"]), operator.index(manifest["limit"])
            (rows, dim), dtype = map(operator.index, manifest["shape"]), DTYPES[manifest["dtype"]]
            encoder, made_with = manifest["encoder"], str(manifest["encoder_fingerprint"])
            sha256 = [manifest["sha256"][name] for name in FILES]
        if encoder_fingerprint not in (None, made_with):
            difference = f"made with {encoder} {made_with[:12]}, but read with encoder {str(encoder_fingerprint)[:12]}"
            raise FileError(directory, f"the caption cache was {difference}.", remedy)
        features = open_array(directory / FILES[0], (rows, dim), dtype, remedy, sha256[0])
        offsets = np.array(open_array(directory / FILES[1], (count + 1,), np.int64, remedy, sha256[1]))
        digests = open_array(directory / FILES[2], (count, 32), np.uint8, remedy, sha256[2])
        row_of = {digest.tobytes(): row for row, digest in enumerate(digests)}
        return cls(directory, features, offsets, row_of, limit, made_with, remedy)

    @property
    def dim(self) -> int:
        """D."""
        return self.features.shape[1]

    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """Numbers int64 [N] of these captions in the cache.

        Raises:
            FileError: some are not in it; says how many and names the first.
        """
        found = [self.row_of.get(caption_hash(caption), -1) for caption in captions]
        if absent := [caption for caption, row in zip(captions, found, strict=True) if row < 0]:
            problem = f'{len(absent)} of {len(captions)} captions are not in the cache, "{absent[0][:60]}" first.'
            raise FileError(self.directory, problem, self.remedy)
        return np.array(found, dtype=np.int64)

    def batch(self, rows: np.ndarray, device: torch.device) -> Captions:
        """Captions [B, C, D] of these rows, left-padded with zeros as in the official `dataset/t2i.py`."""
        features = np.zeros((len(rows), self.limit, self.features.shape[1]), dtype=self.features.dtype)
        mask = np.zeros((len(rows), self.limit), dtype=bool)
        for i, row in enumerate(rows):
            start, stop = self.offsets[row : row + 2]
            features[i, self.limit - (stop - start) :] = self.features[start:stop]
            mask[i, self.limit - (stop - start) :] = True
        return Captions(torch.from_numpy(features).to(device), torch.from_numpy(mask).to(device))


@dataclass(frozen=True)
class CaptionConditions:
    """The captions of N images, for `AlignmentData`."""

    cache: CaptionCache
    rows: np.ndarray  # int64 [N], `CaptionCache.rows`

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, items: np.ndarray, device: torch.device) -> Captions:
        return self.cache.batch(self.rows[items], device)
