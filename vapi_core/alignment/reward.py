"""The reconstruction reward of VA-π (paper, §1 item 4): how close the decoded rollout comes to the training image.

R = -(sum of weighted terms). Terms: `mse` and `perceptual` are the paper's; `l1` and `embedding` (one minus the cosine
between code vectors and the encoder's output) are further terms of the authors' trainer. Each is [B, G].
Departure: features of the reference are computed once per image, not once per rollout.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vapi_core.models.tokenizer import Tokenizer


class PerceptualDistance(Protocol):
    """A distance between images that is taken between their features, so that features can be shared."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Features [N, C, H, W] of each stage, of images [N, 3, H, W] in [-1, 1]."""
        ...

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distances [...] of features [..., C, H, W] whose leading dimensions broadcast."""
        ...


@dataclass(frozen=True)
class RewardWeights:
    """Weight of each term; 0 leaves it out. Paper: mse 1, perceptual (λ_p) 1."""

    mse: float = 1.0
    perceptual: float = 1.0
    l1: float = 0.0
    embedding: float = 0.0


class ReconstructionReward:
    """Decodes rollouts with the frozen tokenizer and compares them with the images they came from."""

    def __init__(self, tokenizer: Tokenizer, weights: RewardWeights, perceptual: PerceptualDistance | None = None):
        assert perceptual is not None or weights.perceptual == 0
        self.tokenizer, self.weights, self.perceptual = tokenizer, weights, perceptual

    @torch.no_grad()
    def __call__(self, rollouts: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Rewards [B, G] of rollouts [B, G, T] for images [B, 3, H, W], and the unweighted terms, each [B, G]."""
        b, g, _ = rollouts.shape
        factor = self.tokenizer.config.downsample
        grid = (images.shape[2] // factor, images.shape[3] // factor)
        codes = self.tokenizer.quantize.look_up(rollouts.flatten(0, 1), grid)  # [B * G, D, h, w]
        decoded = self.tokenizer.decode_codes(codes)  # [B * G, 3, H, W]
        difference = decoded.unflatten(0, (b, g)) - images[:, None]
        terms = {}
        if self.weights.mse:
            terms["mse"] = difference.square().mean((2, 3, 4))
        if self.weights.l1:
            terms["l1"] = difference.abs().mean((2, 3, 4))
        if self.weights.perceptual:
            assert self.perceptual is not None
            reference = [f[:, None] for f in self.perceptual.features(images)]
            rolled = [f.unflatten(0, (b, g)) for f in self.perceptual.features(decoded)]
            terms["perceptual"] = self.perceptual.distance(rolled, reference)
        if self.weights.embedding:
            target = self.tokenizer.embed(images).flatten(1)[:, None]
            terms["embedding"] = 1 - F.cosine_similarity(codes.unflatten(0, (b, g)).flatten(2), target, dim=-1)
        total = sum(getattr(self.weights, name) * value for name, value in terms.items())
        return -torch.as_tensor(total), terms
