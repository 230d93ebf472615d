"""Tokenizer post-training, a rival of table 2: the decoder learns to decode what the generator samples.

Tokens are sampled from one teacher-forced forward of the frozen base generator, as VA-π's rollouts are, and the decoder
is trained to reconstruct the image from them (MSE and a perceptual distance; Qiu et al. 2025, "Image Tokenizer Needs
Post-Training"). Encoder, quantizer and codebook stay frozen, so tokens keep their meaning and the generator its use.
Departure: no discriminator, since the base tokenizer here had none.
"""

import numpy as np
import torch
from torch import Tensor

from vapi_core.alignment.data import AlignmentData
from vapi_core.alignment.reconstruction import reconstruction_loss
from vapi_core.alignment.reward import PerceptualDistance, RewardWeights
from vapi_core.models.policy import Policy
from vapi_core.models.tokenizer import Tokenizer
from vapi_core.randomness import stream
from vapi_core.sampling import invert_cdf
from vapi_core.training import Slots


class TokenizerPostTraining:
    """The objective, for `vapi_core.training.train` over `tokenizer`, of which only the decoder requires a gradient."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        generator: Policy,
        data: AlignmentData,
        weights: RewardWeights,
        seed: int,
        perceptual: PerceptualDistance | None = None,
    ):
        self.tokenizer, self.generator = tokenizer.eval().requires_grad_(False), generator.eval().requires_grad_(False)
        for part in (tokenizer.decoder, tokenizer.post_quant_conv):
            part.requires_grad_(True)
        self.data, self.weights, self.seed, self.perceptual = data, weights, seed, perceptual

    def __call__(self, slots: Slots) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, condition = self.data.batch(slots.items)  # [B, T]
        images = self.data.reference_images(slots.items)  # [B, 3, H, W]
        with torch.no_grad():
            drawn = self._sample(self.generator(condition, tokens[:, :-1]), slots)  # [B, T]
            sampled = drawn.clamp(max=self.generator.config.codebook_size - 1)
        factor = self.tokenizer.config.downsample
        decoded = self.tokenizer.decode(sampled, (images.shape[2] // factor, images.shape[3] // factor))
        loss, terms = reconstruction_loss(decoded, images, self.weights, self.perceptual)
        loss = loss.masked_fill(
            (sampled != drawn).any(), torch.nan
        )  # of logits that are not finite, which nothing trains
        agreement = (sampled == tokens).float().mean()
        return loss, {**{f"reconstruction_{name}": v for name, v in terms.items()}, "token_agreement": agreement}

    def _sample(self, logits: Tensor, slots: Slots) -> Tensor:
        """One sequence [B, T] of logits [B, T, V] at temperature 1."""
        length = logits.shape[1]
        rows = [stream(self.seed, "rollout", slots.step, p).random(length, dtype=np.float32) for p in slots.positions]
        uniforms = torch.from_numpy(np.stack(rows)).to(logits.device)
        return invert_cdf(logits.softmax(-1), uniforms[..., None])[..., 0]
