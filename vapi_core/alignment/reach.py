"""How far a token reaches: where the reward changes when one token does. What credit per token leaves out is its bias.

Finite differences: one token of a rollout is exchanged for another that the policy might have drawn, everything else
stays, and the rewards of all cells are compared. docs/credit.md says what follows from it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vapi_core.alignment.credit import neighbourhood_sums
from vapi_core.alignment.reward import ReconstructionReward


@dataclass(frozen=True)
class Reach:
    """Of the changes that single tokens make. Shares are of the sum over cells of absolute changes, and add up to 1."""

    own: float  # share in the token's own cell
    around: float  # in the cells around it, up to eight
    elsewhere: float
    own_correlation: float  # of the own cell's change with the change of the image's reward
    near_correlation: float  # the same of the 3x3 cells' change


@torch.no_grad()
def measure_reach(reward: ReconstructionReward, rollouts: Tensor, others: Tensor, images: Tensor) -> Reach:
    """Exchanges every token of rollouts [B, T] for that of others [B, T], one at a time.

    Args:
        reward: its terms and weights are those that credit is given for.
        rollouts: tokens, drawn from the policy.
        others: a second draw; where both have the same token nothing changes, and nothing is counted.
        images: [B, 3, H, W] in [-1, 1], which the rewards compare with.
    """
    b, t = rollouts.shape
    exchanged = rollouts[:, None].repeat(1, 1 + t, 1)  # [B, 1 + T, T], the first as it was
    places = torch.arange(t, device=rollouts.device)
    exchanged[:, 1 + places, places] = others
    rewards, _ = reward.per_token(exchanged, images)
    change = (rewards[:, 1:] - rewards[:, :1]).double()  # [B, T, T]: of which token, in which cell
    own = torch.eye(t, device=change.device, dtype=change.dtype)
    near = (9 * neighbourhood_sums(own[None], reward.grid(images))[0]).round()
    size = change.abs().sum()
    assert size > 0, "both draws decode to the same images"
    shares = [((change.abs() * cells).sum() / size).item() for cells in (own, near - own, 1 - near)]
    drawn = (rollouts != others).flatten()
    of_image = change.sum(-1).flatten()[drawn]
    correlations = [
        torch.corrcoef(torch.stack([(change * cells).sum(-1).flatten()[drawn], of_image]))[0, 1].item()
        for cells in (own, near)
    ]
    return Reach(*shares, *correlations)
