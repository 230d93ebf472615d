"""The interface to an autoregressive image generator, which alignment and sampling use whatever the architecture.

A policy has a condition (`Condition`), teacher-forced logits (`Policy.forward`) and steps through a KV cache, from
which `vapi_core.sampling.sampler.generate` draws; images become tokens and tokens images by `Tokenizer.encode` and
`Tokenizer.decode`. LlamaGen and Janus-Pro, each in its folder, are policies (`families.py`). Shapes: B sequences of T
image tokens out of V codes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vapi_core.errors import ParameterError


@dataclass(frozen=True)
class Captions:
    """Text features of B captions, left-padded to C tokens (`left_pad`); what the padding holds is never read."""

    features: Tensor  # [B, C, D]
    mask: Tensor  # bool [B, C], true at the caption's own tokens

    def __len__(self) -> int:
        return len(self.features)

    @property
    def device(self) -> torch.device:
        return self.features.device

    def __getitem__(self, rows: slice) -> "Captions":
        return Captions(self.features[rows], self.mask[rows])

    def repeat_interleave(self, repeats: int) -> "Captions":
        """Each caption `repeats` times, one after the other, as a tensor of class ids repeats."""
        return Captions(self.features.repeat_interleave(repeats, 0), self.mask.repeat_interleave(repeats, 0))


def left_pad(features: Tensor, mask: Tensor) -> Captions:
    """Captions from right-padded text features [B, C, D] and their mask [B, C], as the official `sample_t2i.py`."""
    shift = mask.shape[1] - mask.long().sum(1)  # [B]
    source = (torch.arange(mask.shape[1], device=mask.device) - shift[:, None]) % mask.shape[1]  # [B, C]
    padded = features.gather(1, source[..., None].expand_as(features))
    left = mask.bool().flip(-1)
    return Captions(padded.masked_fill(~left[..., None], 0), left)


@dataclass(frozen=True)
class Prompts:
    """Text tokens of B prompts of a language model, left-padded to the longest; the padding is never read."""

    tokens: Tensor  # [B, L]
    mask: Tensor  # bool [B, L], true at the prompt's own tokens

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    def __getitem__(self, rows: slice) -> "Prompts":
        return Prompts(self.tokens[rows], self.mask[rows])

    def repeat_interleave(self, repeats: int) -> "Prompts":
        """Each prompt `repeats` times, one after the other."""
        return Prompts(self.tokens.repeat_interleave(repeats, 0), self.mask.repeat_interleave(repeats, 0))


# class ids [B], captions (LlamaGen) or prompts (Janus): all have a length, a device, slices and `repeat_interleave`
Condition = Tensor | Captions | Prompts


class Conditions(Protocol):
    """The conditions of N images, where they are more than class ids: captions or prompts, in memory or on disk."""

    def __len__(self) -> int: ...

    def batch(self, items: Any, device: torch.device) -> Condition:
        """The conditions of these items, an array of their numbers, ready for the generator."""
        ...


def fill_up(condition: Any, batch: int) -> Any:
    """Conditions [batch], of which the last one is repeated as often as needed."""
    if isinstance(condition, Tensor):
        return torch.cat([condition, condition[-1:].repeat_interleave(batch - len(condition), 0)])
    return type(condition)(*(fill_up(getattr(condition, field.name), batch) for field in fields(condition)))


def compute_dtype(weight: Tensor) -> torch.dtype:
    """What products with a weight are in: the weight's type, or that of the autocast around."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def activation_bytes(layers: int, positions: int, dim: int, ffn_dim: int, itemsize: int, recompute: bool) -> int:
    """About what a transformer keeps of one sequence for its backward, in bytes.

    Products are of `itemsize` bytes, the residual stream and its norms float32. With `recompute` only the input of each
    layer is kept, and one layer's rest.
    """
    layer = positions * (dim * (36 + 4 * itemsize) + ffn_dim * 4 * itemsize)
    return layer + layers * positions * dim * 4 if recompute else layers * layer


class PolicyConfig(Protocol):
    """What every policy's configuration says."""

    @property
    def grid(self) -> int:
        """Side of the token grid."""
        ...

    @property
    def length(self) -> int:
        """Image tokens T."""
        ...

    @property
    def codebook_size(self) -> int:
        """Codes V."""
        ...


class Policy(nn.Module, ABC):
    """An autoregressive generator: row t of its logits predicts token t from the condition and tokens 0..t-1."""

    config: PolicyConfig
    activation_checkpointing: bool = False  # a training keeps only the input of each layer and computes the rest again

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def forward(self, condition: Any, prefix: Tensor) -> Tensor:
        """Teacher-forced logits, float32 [B, T, V], from B conditions and the prefix tokens 0..T-2, [B, T-1]."""

    @abstractmethod
    def append_null(self, condition: Any) -> Any:
        """Conditions [2B] for guidance: the B given ones, then the null condition that belongs to each."""

    @abstractmethod
    def new_cache(self, batch: int) -> Any:
        """An empty KV cache for `batch` sequences. It may be used again: `prefill` starts it anew."""

    @abstractmethod
    def prefill(self, condition: Any, cache: Any) -> Tensor:
        """Logits [B, V] of token 0; fills the cache with the condition."""

    @abstractmethod
    def decode_step(self, tokens: Tensor, position: int, cache: Any) -> Tensor:
        """Logits [B, V] of token `position` from token `position - 1`, tokens [B]; extends the cache."""

    def decode_step_at(self, tokens: Tensor, position: Tensor, stop: int, cache: Any) -> Tensor:
        """`decode_step` in shapes that do not change: `position` is a tensor [1], and `stop` image tokens are read.

        Those from the current position on are masked. For `vapi_core.sampling.decoding`, which compiles it.

        Raises:
            ParameterError: this policy has no such step.
        """
        raise ParameterError("launch.compile", f"{type(self).__name__} has no decode step to compile; set it to false.")

    @abstractmethod
    def cache_bytes(self) -> int:
        """Bytes of the KV cache of one sequence."""

    @abstractmethod
    def activation_bytes(self) -> int:
        """About what the teacher-forced pass of one sequence keeps for its backward, in bytes; without the logits."""
