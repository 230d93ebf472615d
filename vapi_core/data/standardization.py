"""Text features with mean 0 and variance 1 in every dimension, over the tokens of the training captions.

What captions of one kind have in common outweighs in a small encoder's features what tells them apart, and a generator
that is trained for minutes learns the former first. Ours alone, for generators trained here: LlamaGen's read the
features of FLAN-T5 as they are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from vapi_core.data.subset import entries_of, open_array
from vapi_core.files import atomic_path, read_checked_json, sha256_file, write_checked_json
from vapi_core.models.captions import LongCaptionError, TextEncoder, count_tokens, encode_padded, find_long

REMEDY = "To make it anew, run `dvc repro tokenize`."
FILE = "standardization.npy"
HASH_FILE = "standardization.json"
SMALLEST_DEVIATION = 0.1  # of the mean one: dimensions that hardly vary are not blown up


@dataclass(frozen=True)
class Standardization:
    """Mean and standard deviation of each dimension, float32 [D] each."""

    mean: np.ndarray
    deviation: np.ndarray

    def save(self, directory: Path) -> None:
        with atomic_path(directory / FILE) as temporary, open(temporary, "wb") as file:
            np.save(file, np.stack([self.mean, self.deviation]))
        write_checked_json(directory / HASH_FILE, {FILE: sha256_file(directory / FILE)})

    @classmethod
    def open(cls, directory: Path, dim: int) -> "Standardization":
        """Of the caption cache in `directory`. Raises FileError where it is missing, damaged or of another width."""
        with entries_of(directory / HASH_FILE, REMEDY):
            sha256 = read_checked_json(directory / HASH_FILE, REMEDY)[FILE]
        return cls(*np.array(open_array(directory / FILE, (2, dim), np.float32, REMEDY, sha256)))


def measure_features(
    encoder: TextEncoder, captions: Sequence[str], *, truncate: bool, batch_size: int = 64
) -> Standardization:
    """Of the features of these captions' tokens; equal captions count once.

    Raises:
        LongCaptionError: captions are above the encoder's limit and may not be cut off; nothing is encoded.
    """
    unique = sorted(set(captions), key=lambda caption: (len(caption), caption))  # batches then hold little padding
    if not truncate and (long := find_long(encoder, unique, count_tokens(encoder, unique))):
        raise LongCaptionError(long, len(unique), encoder.limit)
    count, total, squares = 0, np.zeros(encoder.dim), np.zeros(encoder.dim)
    for start in range(0, len(unique), batch_size):
        features, mask = encode_padded(encoder, unique[start : start + batch_size])
        rows = features[mask.bool()].double().cpu().numpy()  # [n, D]
        count, total, squares = count + len(rows), total + rows.sum(0), squares + np.square(rows).sum(0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
    deviation = np.maximum(deviation, SMALLEST_DEVIATION * deviation.mean())
    return Standardization(mean.astype(np.float32), deviation.astype(np.float32))


def standardize(encoder: TextEncoder, by: Standardization) -> TextEncoder:
    """The encoder with its features standardized; another encoder, with another fingerprint."""
    digest = hashlib.sha256(f"{encoder.fingerprint} standardized ".encode())
    digest.update(by.mean.tobytes() + by.deviation.tobytes())
    return replace(encoder, model=_Standardized(encoder.model, by), fingerprint=digest.hexdigest())


class _Standardized(nn.Module):
    """A transformers encoder, as far as `encode_padded` asks."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, model: nn.Module, by: Standardization):
        super().__init__()
        self.model = model
        device = next(model.parameters()).device
        self.register_buffer("mean", torch.from_numpy(by.mean).to(device))
        self.register_buffer("deviation", torch.from_numpy(by.deviation).to(device))

    def forward(self, **inputs: Any) -> SimpleNamespace:
        features = self.model(**inputs).last_hidden_state.float()  # [B, L, D]
        return SimpleNamespace(last_hidden_state=(features - self.mean) / self.deviation)
