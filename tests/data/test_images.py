import numpy as np
import torch

from vapi_core.data.images import to_tensor, to_uint8


def test_every_pixel_value_comes_back_from_the_networks_form():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(to_uint8(to_tensor(pixels)), pixels)


def test_images_are_rounded_and_clamped_as_the_official_sampler_does():
    images = torch.linspace(-1.2, 1.2, 3 * 64 * 64).view(1, 3, 64, 64)
    official = torch.clamp(127.5 * images + 128.0, 0, 255).to(torch.uint8)
    np.testing.assert_array_equal(to_uint8(images), official.permute(0, 2, 3, 1).numpy())
    assert (to_uint8(images).min(), to_uint8(images).max()) == (0, 255)
