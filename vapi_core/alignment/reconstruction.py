"""The reconstruction loss of the rivals that differentiate through the decoder: the terms of VA-π's reward, with a
gradient.

Weights are those of the reward, so that all methods pursue the same aim. Terms that compare tokens, not pixels, have no
place here.
"""

import torch
from torch import Tensor

from vapi_core.alignment.method import Problems
from vapi_core.alignment.reward import PerceptualDistance, ReconstructionConfig, RewardWeights, compared_bytes
from vapi_core.data.batches import AlignmentData
from vapi_core.models.llamagen.tokenizer import Tokenizer, decode_training_bytes
from vapi_core.models.perceptual import LPIPS

PIXEL_TERMS = ("mse", "l1", "perceptual")


def reconstruction_loss(
    decoded: Tensor, images: Tensor, weights: RewardWeights, perceptual: PerceptualDistance | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted loss of decoded images [B, 3, H, W] against images of that shape, and its unweighted, detached terms."""
    assert set(weights.terms) <= set(PIXEL_TERMS)
    difference = decoded - images
    terms = {}
    if weights.mse:
        terms["mse"] = difference.square().mean()
    if weights.l1:
        terms["l1"] = difference.abs().mean()
    if weights.perceptual:
        assert perceptual is not None
        with torch.no_grad():
            reference = perceptual.features(images)
        terms["perceptual"] = perceptual.distance(perceptual.features(decoded), reference).mean()
    loss = torch.as_tensor(sum(getattr(weights, name) * value for name, value in terms.items()))
    return loss, {name: value.detach() for name, value in terms.items()}


def decoded_bytes(tokenizer: Tokenizer, data: AlignmentData, perceptual: PerceptualDistance | None) -> int:
    """About what the loss of one image keeps for its backward through the decoder, in bytes."""
    pixels = data.images.shape[1] * data.images.shape[2]
    compared = compared_bytes(pixels) if isinstance(perceptual, LPIPS) else 0  # other networks are small
    return decode_training_bytes(tokenizer.config, pixels) + compared


def pixel_problems(config: ReconstructionConfig) -> Problems:
    """What a method that descends this loss cannot work with."""
    if not config.reward.terms:
        yield "reward", "at least one term needs a weight above 0."
    for name in config.reward.terms:
        if name not in PIXEL_TERMS:
            yield f"reward.{name}", "this method compares pixels and has no such term; set it to 0."
