"""Contextual noise (paper, §1 item 2): prefix tokens replaced by random codes before the teacher-forced forward.

Two kernels: "uniform" draws the replacement from the whole codebook, as the authors' code does; "uniform-except-self"
from the codebook without the token itself, as the paper's text has it. They differ by a share of 1 / K.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vapi_core.randomness import stream
from vapi_core.training.loop import MicroBatch

Kernel = Literal["uniform", "uniform-except-self"]


def noisy_prefix(
    tokens: Tensor, noise_ratio: float, kernel: Kernel, codebook_size: int, seed: int, batch: MicroBatch
) -> Tensor:
    """The prefixes [B, T-1] of tokens [B, T] of a micro-batch, with noise: for a seed the same for every method."""
    prefix = tokens[:, :-1]
    if noise_ratio == 0:
        return prefix
    uniforms, replacements = (
        t.to(tokens.device)
        for t in draw_noise(seed, batch.step, batch.positions, prefix.shape[1], codebook_size, kernel)
    )
    return corrupt_prefix(prefix, noise_ratio, uniforms, replacements, codebook_size, kernel)


def draw_noise(
    seed: int, step: int, positions: Iterable[int], length: int, codebook_size: int, kernel: Kernel = "uniform"
) -> tuple[Tensor, Tensor]:
    """Random numbers for the prefixes at these positions of a step's global batch, each position from its own stream.

    Returns:
        uniforms in [0, 1), float32 [B, length], and replacements, int64 [B, length]: codes for the kernel "uniform",
        offsets 1..K-1 from the token for "uniform-except-self".
    """
    low = 0 if kernel == "uniform" else 1
    uniforms, replacements = [], []
    for position in positions:
        random = stream(seed, "noise", step, position)
        uniforms.append(random.random(length, dtype=np.float32))
        replacements.append(random.integers(low, codebook_size, size=length))
    return torch.from_numpy(np.stack(uniforms)), torch.from_numpy(np.stack(replacements))


def corrupt_prefix(
    prefix: Tensor,
    noise_ratio: float,
    uniforms: Tensor,
    replacements: Tensor,
    codebook_size: int,
    kernel: Kernel = "uniform",
) -> Tensor:
    """Prefix tokens [B, T-1], replaced where the uniform number is below `noise_ratio` (ξ)."""
    noise = replacements if kernel == "uniform" else (prefix + replacements) % codebook_size
    return torch.where(uniforms < noise_ratio, noise, prefix)
