"""STE, a rival of table 2: pixel losses differentiated through the frozen decoder by a straight-through Gumbel-softmax.

One token per place is drawn (Gumbel-max), decoded as the one-hot it is, and its gradient taken as that of the softmax
(Jang et al. 2017, arXiv:1611.01144; VA-π's `train_c2i_ste.py`). The prefix is the clean reference, as there.
Departure: that script multiplies the one-hot by the raw codebook, although the decoder was trained on the normalised
one and decodes with it; here it is the normalised one. With the raw one given, `decode_straight_through` equals the
script (reference `vapi/ste_step`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vapi_core import memory
from vapi_core.alignment.method import Method, Setting
from vapi_core.alignment.reconstruction import decoded_bytes, pixel_problems, reconstruction_loss
from vapi_core.alignment.reward import PerceptualDistance, ReconstructionConfig, open_perceptual, perceptual_network
from vapi_core.data.batches import AlignmentData
from vapi_core.limits import Temperature, Weight
from vapi_core.memory import how_many
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.logits import next_token_loss
from vapi_core.models.policy import Policy
from vapi_core.randomness import stream
from vapi_core.training.loop import InParts, Loss, MicroBatch, Part, image_parts

LOGITS_BYTES = 32  # of each logit of a pass: noise, the softmax, the one-hot and their sums, in float32


@dataclass(frozen=True, kw_only=True)
class StraightThroughConfig(ReconstructionConfig):
    """Hyper-parameters of the method. Its losses are the terms of VA-π's reward."""

    temperature: Temperature = 1.0  # of the distribution that tokens are drawn from
    tau: Temperature = 1.0  # temperature of the softmax that lends its gradient
    ce_weight: Weight = 0.1  # of the next-token prediction loss


class StraightThrough(InParts):
    """The objective of STE, for `vapi_core.training.loop.train`. The tokenizer is frozen, but passes gradients on."""

    def __init__(
        self,
        generator: Policy,
        tokenizer: Tokenizer,
        data: AlignmentData,
        config: StraightThroughConfig,
        seed: int,
        perceptual: PerceptualDistance | None = None,
        part_bytes: int | None = None,
    ):
        self.generator, self.tokenizer = generator.eval(), tokenizer.eval().requires_grad_(False)
        self.data, self.config, self.seed, self.perceptual = data, config, seed, perceptual
        self.part_bytes = part_bytes or memory.part_bytes(data.device)

    def parts(self, batch: MicroBatch) -> list[Part]:
        policy = self.generator.config
        sequence = self.generator.activation_bytes() + LOGITS_BYTES * policy.length * policy.codebook_size
        each = sequence + decoded_bytes(self.tokenizer, self.data, self.perceptual)
        return image_parts(self._loss, batch, how_many(self.part_bytes, each, len(batch.items), share=1.0))

    def _loss(self, batch: MicroBatch) -> Loss:
        config = self.config
        tokens, condition = self.data.batch(batch.items)  # [B, T]
        images = self.data.reference_images(batch.items)  # [B, 3, H, W]
        logits = self.generator(condition, tokens[:, :-1])  # [B, T, V]
        noise = gumbel_noise(self.seed, batch, tokens.shape[1], logits.shape[2]).to(logits.device)
        one_hot, drawn = straight_through(logits, noise, config.temperature, config.tau)
        decoded = decode_straight_through(self.tokenizer, one_hot, self.tokenizer.quantize.codebook, images.shape)
        reconstruction, terms = reconstruction_loss(decoded, images, config.reward, self.perceptual)
        ce = next_token_loss(logits, tokens)
        return reconstruction + config.ce_weight * ce, {
            "reconstruction": reconstruction.detach(),
            **{f"reconstruction_{name}": value for name, value in terms.items()},
            "ce": ce.detach(),
            "token_agreement": (drawn == tokens).float().mean(),
        }


def gumbel_noise(seed: int, batch: MicroBatch, length: int, codebook_size: int) -> Tensor:
    """Standard Gumbel noise [B, length, codebook_size], each image from its own stream."""
    rows = [
        stream(seed, "gumbel", batch.step, p).standard_exponential((length, codebook_size), dtype=np.float32)
        for p in batch.positions
    ]
    tiny = np.finfo(np.float32).tiny  # an exponential number of exactly 0 would be infinite noise
    return -torch.from_numpy(np.stack(rows)).clamp_(min=float(tiny)).log_()


def straight_through(logits: Tensor, noise: Tensor, temperature: float, tau: float) -> tuple[Tensor, Tensor]:
    """One-hot tokens [B, T, V] with a softmax's gradient, and tokens [B, T], of logits and Gumbel noise [B, T, V]."""
    perturbed = (logits / temperature + noise) / tau
    soft = perturbed.softmax(-1)
    tokens = perturbed.argmax(-1)
    hard = torch.zeros_like(soft).scatter_(-1, tokens[..., None], 1.0)
    return hard - soft.detach() + soft, tokens


def decode_straight_through(tokenizer: Tokenizer, one_hot: Tensor, codebook: Tensor, shape: torch.Size) -> Tensor:
    """Images of one-hot tokens [B, T, V] under a codebook [V, D]; `shape` is theirs, [B, 3, H, W]."""
    factor = tokenizer.config.downsample
    codes = (one_hot @ codebook).unflatten(1, (shape[2] // factor, shape[3] // factor))  # [B, h, w, D]
    return tokenizer.decode_codes(codes.permute(0, 3, 1, 2))


def open_straight_through(config: StraightThroughConfig, setting: Setting) -> StraightThrough:
    perceptual = open_perceptual(config, setting)
    s = setting
    return StraightThrough(s.generator, s.tokenizer, s.data, config, s.seed, perceptual, s.part_bytes)


METHOD = Method(StraightThroughConfig, open_straight_through, perceptual_network, problems=pixel_problems)
