"""The compiled decode loop draws what the plain one does. Here it is traced: a C++ compiler takes minutes."""

import functools

import pytest
import torch

from tests.tiny import CAPTIONED, tiny_captions, tiny_generator
from vapi_core.errors import ParameterError, VapiError
from vapi_core.models.policy import Captions, Policy, fill_up
from vapi_core.sampling.decoding import cache_lengths
from vapi_core.sampling.sampler import Sampler, SamplingConfig, generate, sampling_uniforms

CLASSES = torch.tensor([0, 1, 2, 3, 4, 0])
CONFIGS = [
    SamplingConfig(),
    SamplingConfig(guidance_scale=2.0, top_k=6, top_p=0.9, temperature=0.8),
    SamplingConfig(guidance_scale=3.0, guidance_interval=2),
]


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))


def test_steps_read_a_few_lengths_of_the_cache():
    assert cache_lengths(15) == [15]
    assert cache_lengths(255) == [32, 64, 96, 128, 160, 192, 224, 255]
    assert len(cache_lengths(575)) <= 8 and cache_lengths(575)[-1] == 575


@pytest.mark.parametrize("config", CONFIGS)
def test_classes_give_the_tokens_of_the_plain_loop_batch_after_batch(config):
    generator = tiny_generator(grid=5)
    sampler = Sampler(generator, config, compiled=True)
    for seed, classes in enumerate((CLASSES, CLASSES.flip(0), CLASSES[:4])):  # the last batch is smaller
        uniforms = sampling_uniforms(seed, range(len(classes)), 25)
        assert torch.equal(sampler(classes, uniforms), generate(generator, classes, uniforms, config))


def test_captions_of_another_batch_bring_their_own_mask():
    generator, config = tiny_generator(**CAPTIONED), SamplingConfig(guidance_scale=2.0)
    sampler = Sampler(generator, config, compiled=True)
    uniforms = sampling_uniforms(0, range(4), 9)
    for captions in (tiny_captions(), tiny_captions((1, 4, 5, 2), seed=1)):
        assert torch.equal(sampler(captions, uniforms), generate(generator, captions, uniforms, config))


@pytest.mark.parametrize("compiled", [False, True])
def test_logits_that_are_not_numbers_are_refused_whatever_draws_from_them(compiled):
    generator = tiny_generator()
    with torch.no_grad():
        generator.output.weight[3] = torch.inf
    sampler = Sampler(generator, SamplingConfig(), compiled=compiled)
    with pytest.raises(VapiError, match="logits of the generator are not finite in float32"):
        sampler(CLASSES, sampling_uniforms(0, range(6), 9))


@torch.no_grad()
def test_logits_of_a_masked_cache_are_those_of_a_filled_one():
    """In float64 to its rounding: what lies behind the position weighs exactly nothing."""
    generator = tiny_generator().double()
    plain, masked = generator.new_cache(6), generator.new_cache(6)
    masked.store.normal_()
    for cache in (plain, masked):
        generator.prefill(CLASSES, cache)
    tokens = torch.arange(6)
    for position in range(1, 9):
        a = generator.decode_step(tokens, position, plain)
        b = generator.decode_step_at(tokens, torch.tensor([position]), 8, masked)
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_a_plain_sampler_keeps_its_cache_from_batch_to_batch():
    generator, config = tiny_generator(), SamplingConfig(guidance_scale=2.0)
    sampler = Sampler(generator, config)
    caches = []
    for seed in range(2):
        uniforms = sampling_uniforms(seed, range(6), 9)
        assert torch.equal(sampler(CLASSES, uniforms), generate(generator, CLASSES, uniforms, config))
        caches.append(sampler._cache)
    assert caches[0] is caches[1]
    assert sampler(CLASSES[:2], uniforms[:2]).shape == (2, 9)


def test_conditions_are_filled_up_with_the_last_one():
    assert fill_up(torch.tensor([3, 5]), 4).tolist() == [3, 5, 5, 5]
    captions = tiny_captions()
    filled = fill_up(captions, 6)
    assert isinstance(filled, Captions) and len(filled) == 6
    assert torch.equal(filled.features[:4], captions.features) and torch.equal(filled.mask[5], captions.mask[3])


def test_a_policy_without_such_a_step_says_so():
    class Other(Policy):
        forward = append_null = new_cache = prefill = decode_step = cache_bytes = activation_bytes = None

    with pytest.raises(ParameterError, match="launch.compile"):
        Other().decode_step_at(CLASSES, torch.tensor([1]), 8, None)
