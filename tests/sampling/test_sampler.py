"""Filtering and guidance are compared with the official numbers by `tests/parity`; this is what is our own."""

import numpy as np
import pytest
import torch

from tests.tiny import CAPTIONED, tiny_captions, tiny_generator, tiny_tokenizer
from vapi_core.models.llamagen.generator import KVCache
from vapi_core.models.llamagen.tokenizer import decode_bytes
from vapi_core.models.policy import Captions
from vapi_core.sampling.sampler import (
    SamplingConfig,
    batch_in_memory,
    filtered_probabilities,
    generate,
    guidance_scales,
    invert_cdf,
    sampling_uniforms,
)

ALMOST_ONE = float(np.nextafter(np.float32(1), np.float32(0)))  # the largest number a stream can draw
CLASSES = torch.tensor([0, 1, 2, 3, 4, 0])
CONFIGS = [SamplingConfig(), SamplingConfig(guidance_scale=2.0, top_k=6, top_p=0.9, temperature=0.8)]


def draw(probabilities: list[float], uniforms: list[float]) -> list[int]:
    return invert_cdf(torch.tensor(probabilities), torch.tensor(uniforms)).tolist()


# One token from one uniform number


def test_a_token_owns_the_uniforms_from_its_lower_to_below_its_upper_bound():
    below = [float(np.nextafter(np.float32(x), np.float32(0))) for x in (0.25, 0.5)]
    uniforms = [0.0, below[0], 0.25, below[1], 0.5, ALMOST_ONE]
    assert draw([0.25, 0.25, 0.5], uniforms) == [0, 0, 1, 1, 2, 2]


def test_a_token_without_probability_is_never_drawn():
    uniforms = [0.0, 0.3, 0.49999997, 0.5, 0.7, ALMOST_ONE]
    assert set(draw([0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0], uniforms)) == {2, 4}
    assert draw([0.0, 1.0, 0.0], uniforms) == [1] * 6


@pytest.mark.parametrize("scale", [1e-3, 0.999999, 1.0000001, 7.0])
def test_probabilities_need_not_sum_to_exactly_one(scale):
    assert draw([0.5 * scale, 0.5 * scale, 0.0], [0.0, 0.4, 0.6, ALMOST_ONE]) == [0, 0, 1, 1]


def test_a_number_that_rounds_up_to_one_draws_the_last_possible_token():
    uniforms = torch.tensor([1 - 1e-12], dtype=torch.float64)  # 1 in the float32 of the probabilities
    assert invert_cdf(torch.tensor([0.5, 0.5, 0.0]), uniforms).tolist() == [1]


@pytest.mark.parametrize("top_k", [1, 5, 100])
def test_filtered_tokens_are_never_drawn_from_a_large_vocabulary(top_k):
    random = torch.Generator().manual_seed(0)
    probabilities = filtered_probabilities(torch.randn(20, 16384, generator=random), top_k=top_k)
    extremes = torch.tensor([0.0, 1e-8, 0.5, 1 - 1e-6, ALMOST_ONE]).expand(20, -1)
    uniforms = torch.cat([extremes, torch.rand(20, 500, generator=random)], -1)
    drawn = invert_cdf(probabilities, uniforms)
    assert (probabilities.gather(-1, drawn) > 0).all()
    assert drawn.max() < 16384


def test_frequencies_match_probabilities():
    logits = torch.tensor([2.0, 0.5, -1.0, 0.0, 1.0, -3.0, 0.3, -0.2])
    probabilities = filtered_probabilities(logits, temperature=1.3, top_k=6)
    draws = 20000
    uniforms = torch.from_numpy(np.random.default_rng(0).random(draws, dtype=np.float32))
    counts = invert_cdf(probabilities, uniforms).bincount(minlength=8)
    possible = probabilities > 0
    expected = probabilities[possible] * draws
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    assert possible.sum() == 6 and counts[~possible].sum() == 0
    assert chi_square < 25.7  # 5 degrees of freedom: exceeded once in 10,000 seeds


def test_each_row_has_its_own_distribution_and_its_own_uniforms():
    probabilities = torch.tensor([[[0.9, 0.1, 0.0], [0.0, 0.1, 0.9]]])
    uniforms = torch.tensor([[[0.0, 0.5, 0.95], [0.05, 0.5, 0.95]]])
    assert invert_cdf(probabilities, uniforms).tolist() == [[[0, 0, 1], [1, 2, 2]]]


# Uniform numbers of an image


def test_an_image_has_its_numbers_whatever_it_is_drawn_with():
    together = sampling_uniforms(0, range(10), 9)
    apart = torch.cat([sampling_uniforms(0, range(4), 9), sampling_uniforms(0, np.array([4, 5, 6, 7, 8, 9]), 9)])
    assert torch.equal(together, apart)
    assert len(together.unique()) == 90
    assert not torch.equal(sampling_uniforms(1, range(10), 9), together)
    assert together.dtype == torch.float32 and together.min() >= 0 and together.max() < 1


# Sequences


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("sizes", [[1, 5], [2, 2, 2], [1] * 6])
def test_images_do_not_depend_on_how_they_are_batched(config, sizes):
    generator, uniforms = tiny_generator(), sampling_uniforms(0, range(6), 9)
    together = generate(generator, CLASSES, uniforms, config)
    batches = zip(CLASSES.split(sizes), uniforms.split(sizes), strict=True)
    assert torch.equal(torch.cat([generate(generator, c, u, config) for c, u in batches]), together)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_memory_of_an_earlier_batch_does_not_shine_through(config):
    generator = tiny_generator()
    first, second = sampling_uniforms(0, range(6), 9), sampling_uniforms(0, range(6, 12), 9)
    rows = 6 if config.guidance_scale == 1 else 12
    cache = KVCache(generator.config, rows, torch.device("cpu"), torch.float32)
    generate(generator, CLASSES, first, config, cache)
    reused = generate(generator, CLASSES.flip(0), second, config, cache)
    assert torch.equal(reused, generate(generator, CLASSES.flip(0), second, config))


@pytest.mark.parametrize("config", CONFIGS)
def test_images_of_captions_do_not_depend_on_how_they_are_batched(config):
    generator, captions, uniforms = tiny_generator(**CAPTIONED), tiny_captions(), sampling_uniforms(0, range(4), 9)
    together = generate(generator, captions, uniforms, config)
    for rows in ([0], [1, 2], [3, 0]):
        batch = Captions(captions.features[rows], captions.mask[rows])
        assert torch.equal(generate(generator, batch, uniforms[rows], config), together[rows])


def test_the_mask_of_an_earlier_batch_of_captions_is_forgotten():
    generator, uniforms = tiny_generator(**CAPTIONED), sampling_uniforms(0, range(2), 9)
    first, second = tiny_captions((5, 2)), tiny_captions((1, 4), seed=1)
    cache = generator.new_cache(4)
    guided = SamplingConfig(guidance_scale=2.0)
    generate(generator, first, uniforms, guided, cache)
    assert torch.equal(
        generate(generator, second, uniforms, guided, cache), generate(generator, second, uniforms, guided)
    )


def test_tokens_of_captions_follow_the_teacher_forced_distribution_and_strong_guidance_its_direction():
    generator, captions, uniforms = tiny_generator(**CAPTIONED), tiny_captions(), sampling_uniforms(3, range(4), 9)
    for scale in (1.0, 3.0):
        tokens = generate(generator, captions, uniforms, SamplingConfig(guidance_scale=scale))
        with torch.no_grad():
            both = generator(generator.append_null(captions), tokens[:, :-1].repeat(2, 1))
        probabilities = (both[4:] + (both[:4] - both[4:]) * scale).softmax(-1)
        assert torch.equal(invert_cdf(probabilities, uniforms[..., None])[..., 0], tokens)


def test_tokens_follow_the_teacher_forced_distribution():
    """Each token, given those before it, is the one that its uniform number picks from the full forward's logits."""
    generator, uniforms = tiny_generator(), sampling_uniforms(3, range(6), 9)
    tokens = generate(generator, CLASSES, uniforms, SamplingConfig())
    with torch.no_grad():
        probabilities = generator(CLASSES, tokens[:, :-1]).softmax(-1)
    assert torch.equal(invert_cdf(probabilities, uniforms[..., None])[..., 0], tokens)


def test_guidance_one_runs_no_unconditional_sequence_and_zero_only_that():
    generator, uniforms = tiny_generator(), sampling_uniforms(0, range(6), 9)
    null = torch.full_like(CLASSES, generator.null_class)
    unguided = generate(generator, null, uniforms, SamplingConfig())
    assert torch.equal(generate(generator, CLASSES, uniforms, SamplingConfig(guidance_scale=0.0)), unguided)
    cache = KVCache(generator.config, 6, torch.device("cpu"), torch.float32)  # room for 6 rows, not 12
    generate(generator, CLASSES, uniforms, SamplingConfig(guidance_scale=1.0), cache)


def test_stronger_guidance_follows_the_class_more_closely():
    generator, uniforms = tiny_generator(), sampling_uniforms(0, range(6), 9)
    null = torch.full_like(CLASSES, generator.null_class)

    def preference(scale: float) -> float:
        """Mean log-probability ratio of the tokens with and without the class."""
        tokens = generate(generator, CLASSES, uniforms, SamplingConfig(guidance_scale=scale))
        with torch.no_grad():
            with_class, without = (generator(c, tokens[:, :-1]).log_softmax(-1) for c in (CLASSES, null))
        return float((with_class - without).gather(-1, tokens[..., None]).mean())

    assert preference(0.0) < preference(1.0) < preference(4.0)


# Guidance schedules


def test_guidance_is_constant_unless_an_interval_ends_it():
    assert guidance_scales(5, SamplingConfig(guidance_scale=3.0)) == [3.0] * 5
    assert guidance_scales(5, SamplingConfig(guidance_scale=3.0, guidance_interval=0)) == [3.0, 3.0, 1.0, 1.0, 1.0]
    assert guidance_scales(5, SamplingConfig(guidance_scale=3.0, guidance_interval=2)) == [3.0] * 4 + [1.0]
    assert guidance_scales(1, SamplingConfig(guidance_scale=3.0, guidance_power=1.0)) == [3.0]


def test_the_power_cosine_schedule_rises_from_none_after_the_first_token():
    scales = guidance_scales(16, SamplingConfig(guidance_scale=3.0, guidance_power=2.0))
    assert scales[0] == 3.0 and scales[1] == 1.0
    assert scales[1:] == sorted(scales[1:]) and 2.5 < scales[-1] < 3.0


# How many at once


def test_a_batch_is_as_large_as_caches_or_decoded_images_fit_into_memory():
    generator, tokenizer = tiny_generator(), tiny_tokenizer()
    cache = 2 * 2 * 4 * 10 * 8 * 4  # layers, keys and values, heads, class and tokens, channels, bytes
    assert generator.cache_bytes() == cache
    of_one = batch_in_memory(2 * 10**6, generator, tokenizer, guided=False)
    assert 1 < of_one < 1024 and of_one == 10**6 // decode_bytes(tokenizer.config, 36, 4)
    assert batch_in_memory(0, generator, tokenizer, guided=True) == 1
    assert batch_in_memory(10**12, generator, tokenizer, guided=True) == 1024
    large = tiny_generator(layers=200)
    guided = batch_in_memory(10**7, large, tokenizer, guided=True)
    assert guided == batch_in_memory(10**7, large, tokenizer, guided=False) // 2
