"""Named random streams: every draw comes from (seed, purpose, index), never from rank, batch size or wall time.

`index` is what the draw belongs to: image i of a sample set, step t of a training, image j of step t. Whoever computes
image i, in whatever batch and on whatever process, draws the same numbers for it.
"""

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed for the stream (seed, purpose, index)."""
    name = "/".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def stream(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """The numpy generator of the stream (seed, purpose, index)."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, purpose, *index)))


def seed_torch(seed: int, purpose: str, *index: int) -> None:
    """Seeds torch's global generators from a stream: for initial weights and for the dropout of one training step."""
    torch.manual_seed(derive_seed(seed, purpose, *index))
