"""What encoding, drawing and decoding images has to do.

A decode step is counted for the first and the last token, between which it grows evenly.
"""

from collections.abc import Callable
from functools import lru_cache

import torch

from pipelines.config.params import Params, grid_side
from pipelines.estimates import models
from pipelines.estimates.sizes import images_of_set
from pipelines.estimates.work import NOTHING, Work, counted, measure, of_layers, operation
from vapi_core.data.images import images_of_a_pass, resize_bicubic
from vapi_core.sampling.sampler import SamplingConfig, batch_in_memory, filtered_probabilities, guide, invert_cdf

ENCODERS = {"minilm": 11e6, "flan-t5-xl": 1.2e9}  # parameters of a text encoder without its embeddings


class CountedParams:
    """Params as an argument of a cache. Two are one where models, images and scores are the same."""

    def __init__(self, params: Params):
        p = self.params = params
        self._key = repr((p.subset, p.captions, p.tokenizer, p.generator, p.sample, p.score, p.launch.dtype))
        self._key += repr(p.launch.activation_checkpointing)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CountedParams) and other._key == self._key


def encoding(params: Params, count: int) -> Work:
    """Tokens of so many images."""
    side = params.subset.image_size
    size = images_of_a_pass(side)

    def build() -> Work:
        tokenizer, images = models.open_tokenizer(params).eval(), torch.zeros(size, 3, side, side)
        with torch.no_grad():
            return measure(lambda: tokenizer.encode(images))

    return counted(build) * (count / size)


def decoding(params: Params, count: int, side: int) -> Work:
    """So many images of tokens, resized to a side."""
    size = images_of_a_pass(params.subset.image_size)

    def build() -> Work:
        tokenizer, tokens = models.open_tokenizer(params).eval(), torch.zeros(size, grid_side(params) ** 2).long()

        def decode() -> torch.Tensor:
            images = tokenizer.decode(tokens)
            return images if side == params.subset.image_size else resize_bicubic(images, side)

        with torch.no_grad():
            return measure(decode)

    return counted(build) * (count / size)


@lru_cache(maxsize=64)
def decoded(key: CountedParams, count: int, side: int) -> Work:
    return decoding(key.params, count, side)


def encoded_captions(params: Params, count: int) -> Work:
    """A text encoder over so many captions, each as long as may be."""
    if params.captions is None or params.captions.encoder not in ENCODERS:
        return NOTHING
    weights = ENCODERS[params.captions.encoder]
    return operation(2 * weights * params.captions.tokens, 4 * weights / 32) * count


@lru_cache(maxsize=64)
def drawn_tokens(key: CountedParams, config: SamplingConfig, memory: float) -> Work:
    """The tokens of one set, drawn step by step in batches."""
    params, count = key.params, images_of_set(key.params)
    size = min(count, params.sample.batch_size or _batch(params, config.guidance_scale != 1.0, memory))
    length = grid_side(params) ** 2

    def of(layers: int) -> Work:
        return counted(lambda: _draw(params, config, layers, size, length))

    return of_layers(of, params.generator.layers) * (count / size)


def _batch(params: Params, guided: bool, memory: float) -> int:
    """How many images fit beside the generator in memory of so many bytes."""
    sizes: list[int] = []
    dtype = getattr(torch, params.launch.dtype)

    def build() -> Work:
        policy, tokenizer = models.open_policy(params, dtype=dtype), models.open_tokenizer(params)
        free = memory - sum(p.numel() * p.itemsize for p in policy.parameters())
        sizes.append(batch_in_memory(int(free), policy, tokenizer, guided))
        return NOTHING

    counted(build)
    return sizes[0]


def _draw(params: Params, config: SamplingConfig, layers: int, size: int, length: int) -> Work:
    """One batch of sequences: the prefill, then a step for every further token."""
    policy = models.open_policy(params, layers).eval().requires_grad_(False)
    rows = 2 * size if config.guidance_scale != 1.0 else size
    cache, uniforms = policy.new_cache(rows), torch.zeros(size, 1)

    def draw(logits: torch.Tensor) -> None:
        filtered = filtered_probabilities(
            guide(logits, config.guidance_scale, size), config.temperature, config.top_k, config.top_p
        )
        invert_cdf(filtered, uniforms)

    with torch.no_grad():
        prefill = measure(lambda: policy.prefill(models.conditions(params, rows), cache))
    return prefill + decode_steps(params, layers, rows, draw) * (length - 1)


def decode_steps(params: Params, layers: int, rows: int, draw: Callable[[torch.Tensor], None] | None) -> Work:
    """One decode step of so many rows, the mean of the first and the last; and what draws its tokens."""
    policy = models.open_policy(params, layers).eval().requires_grad_(False)
    cache, tokens = policy.new_cache(rows), torch.zeros(rows, dtype=torch.long)
    with torch.no_grad():
        logits = policy.prefill(models.conditions(params, rows), cache)
        if draw is not None:
            drawing = measure(lambda: draw(logits))
        first = measure(lambda: policy.decode_step(tokens, 1, cache))
        # a Janus's cache grows step by step: of no other position can one be had
        jumps = hasattr(cache, "store")
        last = measure(lambda: policy.decode_step(tokens, policy.config.length - 1, cache)) if jumps else first
    return (first + last) * 0.5 + (drawing if draw is not None else NOTHING)
