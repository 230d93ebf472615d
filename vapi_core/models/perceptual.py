"""Perceptual distances for the reward: LPIPS-VGG16, and the same formula over a small classifier of the user's own data.

Departure from the paper: its λ_p term is LPIPS, whose weights come from the web. The default profile, which downloads
nothing, puts a digit classifier trained in the DAG in VGG's place; without learned heads, every channel weighs the same.
"""

import torch
from torch import Tensor, nn


def unit_normalize(features: Tensor) -> Tensor:
    """Divides features [..., C, H, W] by their norm over channels; 1e-10 is added after the root, as in LPIPS."""
    return features / (features.square().sum(-3, keepdim=True).sqrt() + 1e-10)


class FeatureDistance(nn.Module):
    """Mean over stages of the spatial mean of squared differences between unit-normalised feature maps."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        return [unit_normalize(f) for f in self.network.stages(images)]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        stages = [(x - y).square().sum(-3).mean((-1, -2)) for x, y in zip(a, b, strict=True)]
        return torch.stack(stages).mean(0)


def load_lpips(path):
    raise NotImplementedError
