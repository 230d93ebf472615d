"""Tokenizer post-training, a rival of table 2: the decoder learns to decode what the generator samples.

Tokens are sampled from one teacher-forced forward of the frozen base generator, as VA-π's rollouts are, and the decoder
is trained to reconstruct the image from them (MSE and a perceptual distance; Qiu et al. 2025, "Image Tokenizer Needs
Post-Training"). Encoder, quantizer and codebook stay frozen, so tokens keep their meaning and the generator its use.
Departure: no discriminator, since the base tokenizer here had none.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vapi_core import memory
from vapi_core.alignment.method import Method, Setting
from vapi_core.alignment.reconstruction import decoded_bytes, pixel_problems, reconstruction_loss
from vapi_core.alignment.reward import (
    PerceptualDistance,
    ReconstructionConfig,
    RewardWeights,
    open_perceptual,
    perceptual_network,
)
from vapi_core.data.batches import AlignmentData
from vapi_core.memory import how_many
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.policy import Policy
from vapi_core.randomness import stream
from vapi_core.sampling.sampler import invert_cdf
from vapi_core.training.loop import InParts, Loss, MicroBatch, Part, image_parts


@dataclass(frozen=True, kw_only=True)
class TokenizerPostTrainingConfig(ReconstructionConfig):
    """Hyper-parameters of the method: its losses, which are the terms of VA-π's reward."""


class TokenizerPostTraining(InParts):
    """The objective for `vapi_core.training.loop.train` over `tokenizer`, whose decoder alone requires a gradient."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        generator: Policy,
        data: AlignmentData,
        weights: RewardWeights,
        seed: int,
        perceptual: PerceptualDistance | None = None,
        part_bytes: int | None = None,
    ):
        self.tokenizer, self.generator = tokenizer.eval().requires_grad_(False), generator.eval().requires_grad_(False)
        for part in (tokenizer.decoder, tokenizer.post_quant_conv):
            part.requires_grad_(True)
        self.data, self.weights, self.seed, self.perceptual = data, weights, seed, perceptual
        self.part_bytes = part_bytes or memory.part_bytes(data.device)

    def parts(self, batch: MicroBatch) -> list[Part]:
        each = decoded_bytes(self.tokenizer, self.data, self.perceptual)
        return image_parts(self._loss, batch, how_many(self.part_bytes, each, len(batch.items), share=1.0))

    def _loss(self, batch: MicroBatch) -> Loss:
        tokens, condition = self.data.batch(batch.items)  # [B, T]
        images = self.data.reference_images(batch.items)  # [B, 3, H, W]
        with torch.no_grad():
            drawn = self._sample(self.generator(condition, tokens[:, :-1]), batch)  # [B, T]
            sampled = drawn.clamp(max=self.generator.config.codebook_size - 1)
        factor = self.tokenizer.config.downsample
        decoded = self.tokenizer.decode(sampled, (images.shape[2] // factor, images.shape[3] // factor))
        loss, terms = reconstruction_loss(decoded, images, self.weights, self.perceptual)
        loss = loss.masked_fill(
            (sampled != drawn).any(), torch.nan
        )  # of logits that are not finite, which nothing trains
        agreement = (sampled == tokens).float().mean()
        return loss, {**{f"reconstruction_{name}": v for name, v in terms.items()}, "token_agreement": agreement}

    def _sample(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """One sequence [B, T] of logits [B, T, V] at temperature 1."""
        length = logits.shape[1]
        rows = [stream(self.seed, "rollout", batch.step, p).random(length, dtype=np.float32) for p in batch.positions]
        uniforms = torch.from_numpy(np.stack(rows)).to(logits.device)
        return invert_cdf(logits.softmax(-1), uniforms[..., None])[..., 0]


def open_post_training(config: TokenizerPostTrainingConfig, setting: Setting) -> TokenizerPostTraining:
    perceptual, s = open_perceptual(config, setting), setting
    return TokenizerPostTraining(s.tokenizer, s.generator, s.data, config.reward, s.seed, perceptual, s.part_bytes)


METHOD = Method(
    TokenizerPostTrainingConfig, open_post_training, perceptual_network, trains="tokenizer", problems=pixel_problems
)
