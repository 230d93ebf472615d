"""Sampling tokens: our cache and loop against the official sampler's, at equal batch and on the same random numbers."""

import argparse
import copy
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest.mock import patch

import torch

from benchmarks import authors
from benchmarks.measure import Results, flops, in_turn, machine, matmul_rate, memory_rate, pairs, peak
from benchmarks.models import CLASSES, Setting, build_generator, setting
from vapi_core.models.llamagen.generator import Generator
from vapi_core.sampling import packing
from vapi_core.sampling.sampler import Sampler, SamplingConfig, sampling_uniforms

COMPARED_ON_CPU = 4  # images: in float64 all of a batch would cost as much as two pairs


def bytes_read(generator: Generator, batch: int, guided: bool) -> float:
    """What drawing a batch must read at least: all weights, and the filled part of the KV cache, once a token."""
    length, size = generator.config.length, generator.output.weight.dtype.itemsize
    weights = sum(p.numel() for name, p in generator.named_parameters() if "embed" not in name) * size
    rows = 2 * batch if guided else batch
    of_position = generator.cache_bytes() / (generator.config.condition_tokens + length)
    return length * weights + rows * of_position * length * (length + 1) / 2


def benchmark(options: argparse.Namespace) -> Results:
    """Tokens of both sides compared, then timed in pairs."""
    s = setting(options)
    generator = build_generator(s).to(s.dtype)
    config = SamplingConfig(guidance_scale=s.guidance_scale)
    guided = s.guidance_scale != 1.0
    class_ids = torch.arange(s.images, device=s.device) % CLASSES
    uniforms = sampling_uniforms(0, range(s.images), s.generator.length).to(s.device)
    sampler = Sampler(generator, config, options.compile)

    def ours() -> torch.Tensor:
        return sampler(class_ids, uniforms)

    def theirs() -> torch.Tensor:
        return authors.generate(generator, class_ids, uniforms, config)

    compared = s.images if s.device.type == "cuda" else min(s.images, COMPARED_ON_CPU)
    same = equal_tokens(generator, config, options.compile, class_ids[:compared], uniforms[:compared])
    one = class_ids[:1], uniforms[:1]  # of how many it is proportional to
    with plain_layers():  # operations of compiled steps and of packed weights cannot be counted
        work = {
            "ours": s.images * flops(lambda: Sampler(generator, config)(*one)),
            "authors": s.images * flops(lambda: authors.generate(generator, *one, config)),
        }
    results: Results = {
        "setting": s.describe() | {"guidance_scale": s.guidance_scale, "compiled": options.compile},
        "machine": machine(s.device),
        "flops": work,
        "images_compared": compared,
        "equal_tokens": float(same.mean()),
        "equal_sequences": float(same.all(1).float().mean()),
    }
    if options.quick:
        return results
    ours()  # a compiled step is compiled, and our cache is there
    rates = matmul_rate(s.device, s.dtype), memory_rate(s.device)
    results |= pairs(ours, theirs, s.device, options.pairs)
    if results["peak_bytes"]["ours"] is not None:  # our cache is kept, so that it was in use before each run
        results["peak_bytes"]["ours"] += (2 if guided else 1) * s.images * generator.cache_bytes()
    limit = bytes_read(generator, s.images, guided) / rates[1]
    results |= {
        "matmul_flops_per_second": rates[0],
        "memory_bytes_per_second": rates[1],
        "share_of_matmul_rate": {n: work[n] / t / rates[0] for n, t in results["median_seconds"].items()},
        "share_of_memory_limit": {n: limit / t for n, t in results["median_seconds"].items()},
        "images_per_second": {n: s.images / t for n, t in results["median_seconds"].items()},
    }
    if packing.packable_layers(generator, len(class_ids) * (2 if guided else 1)) and not options.compile:
        results["packing"] = packing_gain(ours, s.device, options.pairs)
    if options.growth:
        results["growth"] = growth(s, generator, config)
    return results


def plain_layers() -> AbstractContextManager[object]:
    """Within, no weights are packed."""
    return patch.object(packing, "MOST_ROWS", 0)


def packing_gain(draw: Callable[[], torch.Tensor], device: torch.device, count: int) -> Results:
    """How many times as fast packed weights are as plain ones, in turn, and where the tokens are the same."""

    def plain() -> torch.Tensor:
        with plain_layers():
            return draw()

    same = draw() == plain()
    sides = in_turn({"packed": draw, "plain": plain}, device, count)
    results: Results = {"equal_tokens": float(same.float().mean())}
    for name, quantity in (("ratio", "seconds"), ("cpu_ratio", "cpu_seconds")):
        runs = zip(sides["packed"], sides["plain"], strict=True)
        ratios = [getattr(p, quantity) / getattr(packed, quantity) for packed, p in runs]
        results |= {name: statistics.median(ratios), f"{name}_range": [min(ratios), max(ratios)]}
    return results


def equal_tokens(
    generator: Generator, config: SamplingConfig, compiled: bool, class_ids: torch.Tensor, uniforms: torch.Tensor
) -> torch.Tensor:
    """Where tokens [B, T] of both sides are equal, 1.0 or 0.0.

    On a CPU weights are taken to float64: in float32 the sides round differently, a token out of thousands of nearly
    even ones then moves to its neighbour, and all behind it are others.
    """
    if generator.device.type == "cpu":
        generator = copy.deepcopy(generator).double()
    ours = Sampler(generator, config, compiled)(class_ids, uniforms)
    return (ours == authors.generate(generator, class_ids, uniforms, config)).float()


def growth(s: Setting, generator: Generator, config: SamplingConfig) -> list[Results]:
    """Peak memory of one batch of each side as the batch doubles."""
    rows = []
    for images in (s.images, 2 * s.images, 4 * s.images):
        class_ids = torch.arange(images, device=s.device) % CLASSES
        uniforms = sampling_uniforms(0, range(images), s.generator.length).to(s.device)
        sampler = Sampler(generator, config)
        row: Results = {"quantity": "images", "value": images}
        row["ours"] = peak(lambda c=class_ids, u=uniforms, draw=sampler: draw(c, u), s.device)
        del sampler
        row["authors"] = peak(lambda c=class_ids, u=uniforms: authors.generate(generator, c, u, config), s.device)
        rows.append(row)
    return rows
