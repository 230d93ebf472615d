"""Sampling: from logits to tokens, and from a generator to sequences of tokens.

A token is drawn by inverting the cumulative distribution at one uniform number, so a sequence of T tokens needs T
numbers. They come from the image's own random stream: image i is the same whatever the batch size or the number of
processes (up to rounding of the logits, which can differ between batch shapes in the last bit).
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from vapi_core.errors import VapiError
from vapi_core.limits import Bounds, Checked, CountOrNone, Guidance, Ratio
from vapi_core.memory import how_many
from vapi_core.models.llamagen.tokenizer import Tokenizer, decode_bytes
from vapi_core.models.policy import Condition, Policy
from vapi_core.randomness import stream
from vapi_core.sampling.decoding import StaticDecoder
from vapi_core.sampling.packing import packed_linears

MOST_IMAGES = 1024  # of a batch: more fill no machine better


@dataclass(frozen=True)
class SamplingConfig(Checked):
    """How sequences are drawn. Guidance 1 is none; `top_k` 0 and `top_p` 1 keep the whole distribution."""

    temperature: Annotated[float, Bounds(least=0, most=100)] = 1.0
    top_k: CountOrNone = 0
    top_p: Ratio = 1.0
    guidance_scale: Guidance = 1.0
    # guide no token after this many decode steps; -1: guide all
    guidance_interval: Annotated[int, Bounds(least=-1, most=2**31)] = -1
    # not None: power-cosine schedule of VA-π's generate()
    guidance_power: Annotated[float, Bounds(above=0, most=100)] | None = None


def guidance_scales(length: int, config: SamplingConfig) -> list[float]:
    """Guidance scale of each of `length` tokens; 1 means the conditional logits alone.

    Token 0 comes from the prefill and always has the full scale. Decode step i makes token i + 1. The interval is
    LlamaGen's `cfg_interval`; the power-cosine schedule is the one of VA-π's fork of `generate.py`:
    1 + (1 - cos(pi * (i / (length - 1)) ** power)) / 2 * (scale - 1).
    """
    scale = config.guidance_scale
    scales = [scale]
    for i in range(length - 1):
        if -1 < config.guidance_interval < i:
            scales.append(1.0)
        elif config.guidance_power is not None:
            progress = (i / (length - 1)) ** config.guidance_power
            scales.append(1 + (1 - math.cos(math.pi * progress)) / 2 * (scale - 1))
        else:
            scales.append(scale)
    return scales


def filtered_probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Probabilities [..., V] of logits after temperature, then top-k, then top-p.

    As the official `generate.py`: all tokens that tie with the k-th are kept, and the most likely token always is.
    """
    logits = logits / max(temperature, 1e-5)
    if top_k > 0:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p < 1.0:
        descending, order = logits.sort(dim=-1, descending=True)
        mass_before = descending.softmax(-1).cumsum(-1).roll(1, -1)
        mass_before[..., 0] = 0.0
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, mass_before > top_p)
        drop.scatter_(-1, order[..., :1], False)
        logits = logits.masked_fill(drop, -math.inf)
    return logits.softmax(-1)


def invert_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [..., n] at which the cumulative distribution of probabilities [..., V] passes uniforms [..., n] in [0,
    1).

    They are V, which is no token, where the probabilities are not finite: nothing waits here to look.
    """
    cdf = probabilities.cumsum(-1)
    total = cdf[..., -1:]
    # a product that rounds up to the total would fall behind the last possible token
    target = torch.minimum(uniforms.to(cdf.dtype) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True)


def sampling_uniforms(seed: int, images: range | np.ndarray, length: int) -> Tensor:
    """Uniform numbers [len(images), length] of the sampling streams of these image indices."""
    rows = [stream(seed, "sample", int(i)).random(length, dtype=np.float32) for i in images]
    return torch.from_numpy(np.stack(rows))


@torch.inference_mode()
def generate(
    generator: Policy,
    condition: Condition,
    uniforms: Tensor,
    config: SamplingConfig,
    cache: Any = None,
) -> Tensor:
    """Samples tokens [B, T] of B conditions with uniforms [B, T].

    With guidance, the conditional and the unconditional sequence run in one batch of 2B. `cache` is one of
    the policy's `new_cache` for that batch size; give it to reuse its memory over batches. A token is V, which is none,
    where logits were not finite; `Sampler` refuses such sequences.
    """
    scales = guidance_scales(generator.config.length, config)
    guided = any(scale != 1.0 for scale in scales)
    batch = len(condition)
    if guided:
        condition = generator.append_null(condition)
    if cache is None:
        cache = generator.new_cache(len(condition))
    uniforms = uniforms.to(generator.device)
    tokens = torch.empty(batch, generator.config.length, dtype=torch.long, device=generator.device)
    logits = generator.prefill(condition, cache)
    with packed_linears(generator, rows=len(condition)):
        for position, scale in enumerate(scales):
            if position > 0:
                previous = tokens[:, position - 1].clamp(max=generator.config.codebook_size - 1)
                logits = generator.decode_step(previous.repeat(2) if guided else previous, position, cache)
            probabilities = filtered_probabilities(
                guide(logits, scale, batch), config.temperature, config.top_k, config.top_p
            )
            tokens[:, position] = invert_cdf(probabilities, uniforms[:, position, None])[:, 0]
    return tokens


def guide(logits: Tensor, scale: float, batch: int) -> Tensor:
    """Guided logits [B, V] from conditional logits [B, V], followed by unconditional ones if there is guidance."""
    conditional, unconditional = logits[:batch], logits[batch:]
    if scale == 1.0 or not len(unconditional):
        return conditional
    return unconditional + (conditional - unconditional) * scale


class Sampler:
    """Draws sequences from one policy batch by batch, in the memory of one KV cache.

    `compiled`: by `StaticDecoder`, whose results agree with the plain ones up to rounding; for many batches, since
    compilation takes a minute or so.
    """

    def __init__(self, policy: Policy, config: SamplingConfig, compiled: bool = False):
        self.policy, self.config, self.compiled = policy, config, compiled
        self.guided = any(scale != 1.0 for scale in guidance_scales(policy.config.length, config))
        self._cache: Any = None
        self._batch = 0
        self._decoder: StaticDecoder | None = None

    def __call__(self, condition: Condition, uniforms: Tensor) -> Tensor:
        """Tokens [B, T] of B conditions and uniforms [B, T].

        Raises:
            VapiError: the policy's logits are not finite.
        """
        tokens = self._compiled(condition, uniforms) if self.compiled else self._plain(condition, uniforms)
        if int(tokens.max()) >= self.policy.config.codebook_size:
            dtype = str(next(self.policy.parameters()).dtype).removeprefix("torch.")
            raise VapiError(f"the logits of the generator are not finite in {dtype}: nothing can be drawn from them.")
        return tokens

    def _plain(self, condition: Condition, uniforms: Tensor) -> Tensor:
        if len(condition) != self._batch:
            self._cache = None  # before the new one is allocated
            self._batch = len(condition)
            self._cache = self.policy.new_cache(2 * self._batch if self.guided else self._batch)
        return generate(self.policy, condition, uniforms, self.config, self._cache)

    def _compiled(self, condition: Condition, uniforms: Tensor) -> Tensor:
        if self._decoder is None or self._decoder.batch < len(condition):
            scales = guidance_scales(self.policy.config.length, self.config)
            self._decoder = StaticDecoder(self.policy, len(condition), scales, self._draw)
        return self._decoder(condition, uniforms)

    def _draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Tokens [B] of guided logits [B, V] and uniforms [B]."""
        config = self.config
        probabilities = filtered_probabilities(logits, config.temperature, config.top_k, config.top_p)
        return invert_cdf(probabilities, uniforms[:, None])[:, 0]


def batch_in_memory(free: int, policy: Policy, tokenizer: Tokenizer, guided: bool) -> int:
    """How many sequences to draw at once with `free` bytes: KV cache and logits, then images. 1024 at most."""
    side = policy.config.grid * tokenizer.config.downsample
    image = decode_bytes(tokenizer.config, side * side, tokenizer.post_quant_conv.weight.dtype.itemsize)
    return how_many(free, max(sequence_bytes(policy, guided), image), MOST_IMAGES)


def sequence_bytes(policy: Policy, guided: bool) -> int:
    """About what drawing one sequence holds, in bytes: KV cache, and float32 logits with what is made of them."""
    return (2 if guided else 1) * (policy.cache_bytes() + 6 * 4 * policy.config.codebook_size)
