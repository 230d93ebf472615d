"""Images of a set: of which classes they are, and how they come to their size."""

import numpy as np
import torch
import torch.nn.functional as F

from tests.tiny import tiny_generator, tiny_tokenizer
from vapi_core.sampling.drawing import choose_classes, draw_images
from vapi_core.sampling.sampler import Sampler, SamplingConfig, generate, sampling_uniforms


def test_balanced_classes_are_equally_many_and_random_ones_follow_their_seed():
    assert np.bincount(choose_classes(100, 10, "balanced", 0)).tolist() == [10] * 10
    random = choose_classes(100, 10, "random", 0)
    assert random.min() >= 0 and random.max() <= 9
    assert np.array_equal(random, choose_classes(100, 10, "random", 0))
    assert not np.array_equal(random, choose_classes(100, 10, "random", 1))


def test_images_are_resized_as_the_official_sampler_does():
    generator, tokenizer = tiny_generator(), tiny_tokenizer(levels=3)
    arguments = (Sampler(generator, SamplingConfig()), tokenizer, torch.arange(4), range(4), 0)
    small, large = draw_images(*arguments, 9), draw_images(*arguments, 12)
    tokens = generate(
        generator, torch.arange(4), sampling_uniforms(0, range(4), generator.config.length), SamplingConfig()
    )
    with torch.inference_mode():
        pixels = F.interpolate(tokenizer.decode(tokens), size=(9, 9), mode="bicubic")
        official = torch.clamp(127.5 * pixels + 128.0, 0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert large.shape == (4, 12, 12, 3)
    np.testing.assert_array_equal(small, official)
