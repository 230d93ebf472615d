"""Images of a set: which classes they are of, and drawing some of them from a generator through its tokenizer."""

from typing import Literal

import numpy as np
import torch

from vapi_core.data.images import images_of_a_pass, resize_bicubic, to_uint8
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.policy import Condition
from vapi_core.randomness import stream
from vapi_core.sampling.sampler import Sampler, sampling_uniforms


def choose_classes(count: int, classes: int, how: Literal["balanced", "random"], seed: int) -> np.ndarray:
    """Class ids [count] of a set: equally many of each, or uniform draws as in the paper's tables."""
    if how == "balanced":
        return np.arange(count) % classes
    return stream(seed, "classes").integers(classes, size=count)


def draw_images(
    sampler: Sampler,
    tokenizer: Tokenizer,
    condition: Condition,
    indices: range | np.ndarray,
    seed: int,
    size: int,
) -> np.ndarray:
    """The images of these indices of a set, uint8 [B, size, size, 3], of B conditions."""
    policy = sampler.policy
    uniforms = sampling_uniforms(seed, indices, policy.config.length)
    tokens = sampler(condition, uniforms.to(policy.device))
    side = policy.config.grid * tokenizer.config.downsample
    parts = []
    with torch.inference_mode():
        for part in tokens.split(images_of_a_pass(side)):
            images = tokenizer.decode(part)
            parts.append(to_uint8(images if size == side else resize_bicubic(images, size)))
    return np.concatenate(parts)
