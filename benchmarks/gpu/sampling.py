"""Sampling of a full-size model with guidance: ours, eager and compiled, beside the official schedule."""

import torch

from benchmarks import authors
from benchmarks.gpu.process import Pieces
from benchmarks.gpu.shapes import Asked, held_bytes
from benchmarks.measure import Results, memory_rate, pairs, run
from benchmarks.models import CLASSES, build_generator
from benchmarks.sample import bytes_read
from vapi_core.sampling.sampler import Sampler, SamplingConfig, sampling_uniforms

COUNT, QUICK_COUNT = 2, 1  # pairs


def measure(profile: str, asked: Asked) -> Pieces:
    s = asked.setting(profile, "sample")
    generator = build_generator(s).to(s.dtype)
    config = SamplingConfig(guidance_scale=s.guidance_scale)
    class_ids = torch.arange(s.images, device=s.device) % CLASSES
    uniforms = sampling_uniforms(0, range(s.images), s.generator.length).to(s.device)
    limit = bytes_read(generator, s.images, guided=True) / memory_rate(s.device)
    yield {
        "setting": s.describe() | {"guidance_scale": s.guidance_scale},
        "held_bytes": held_bytes(s.device),
        "seconds_at_the_memory_limit": limit,
    }

    def theirs() -> torch.Tensor:
        return authors.generate(generator, class_ids, uniforms, config)

    expected = theirs()
    for name, compiled in (("eager", False), ("compiled", True)):
        sampler = Sampler(generator, config, compiled)
        tokens: list[torch.Tensor] = []
        first = run(lambda ours=sampler, drawn=tokens: drawn.append(ours(class_ids, uniforms)), s.device).seconds
        results: Results = {"first_seconds": first, "equal_tokens": (tokens[0] == expected).float().mean().item()}
        count = QUICK_COUNT if asked.quick else COUNT
        results |= pairs(lambda ours=sampler: ours(class_ids, uniforms), theirs, s.device, count)
        if results["peak_bytes"]["ours"] is not None:  # its cache is kept, so that it was in use before each run
            results["peak_bytes"]["ours"] += 2 * s.images * generator.cache_bytes()
        medians = results["median_seconds"].items()
        results["images_per_second"] = {side: s.images / seconds for side, seconds in medians}
        results["share_of_memory_limit"] = {side: limit / seconds for side, seconds in medians}
        yield {name: results}
        del sampler
