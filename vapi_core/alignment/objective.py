"""The policy objective of VA-π (paper, §1 items 5 and 6): group advantages, clipped ratios, regularizers.

All G sequences of a group are rolled out from one teacher-forced forward, so one logits tensor [B, T, V] gives the
log-probabilities of all of them and the prior loss (`vapi_core.models.logits`). Shapes: B images, G rollouts an image,
T tokens.
"""

from typing import Annotated

import torch
from torch import Tensor

from vapi_core.limits import Bounds

GroupSize = Annotated[int, Bounds(least=2, most=2**16)]  # G
ClipEpsilon = Annotated[float, Bounds(above=0, below=1)]  # ε
Clamp = Annotated[float, Bounds(above=0, most=1e6)]  # of advantages, on either side of 0


def group_advantages(rewards: Tensor, clamp: float) -> Tensor:
    """Advantages [B, G] of rewards [B, G] within each group: (R - mean) / (std + 1e-8), unbiased std, clamped to
    ±clamp.

    In float64: the float32 mean of equal rewards can be off by a rounding unit, which the division blows up to
    advantages near 1 (reference `vapi/advantages`, `equal_reward_hazard`). Here they are exactly 0.
    """
    wide = rewards.double()
    advantages = (wide - wide.mean(1, keepdim=True)) / (wide.std(1, keepdim=True) + 1e-8)
    return advantages.clamp(-clamp, clamp).to(rewards.dtype)


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
    """Per-token loss [B, G, T]: -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A).

    Advantages are one a rollout, [B, G], or one a token, [B, G, T].
    """
    a = advantages if advantages.ndim == ratio.ndim else advantages[..., None]
    return -torch.minimum(ratio * a, ratio.clamp(1 - epsilon, 1 + epsilon) * a)


def kl_estimate(log_probabilities: Tensor, base_log_probabilities: Tensor) -> Tensor:
    """Per-token k3 estimate of the KL to the base model on sampled tokens: exp(q - p) - (q - p) - 1, q the base."""
    difference = base_log_probabilities - log_probabilities
    return torch.expm1(difference) - difference  # exp() - 1 would drown small ones in rounding, and go below 0


def group_metrics(rewards: Tensor, terms: dict[str, Tensor], advantages: Tensor) -> dict[str, Tensor]:
    """What is worth a curve of rewards [B, G], their terms by name, and advantages."""
    return {
        "reward": rewards.mean(),
        **{f"reward_{name}": value.mean() for name, value in terms.items()},
        "reward_spread": rewards.std(1).mean(),
        "advantage_magnitude": advantages.abs().mean(),
    }
