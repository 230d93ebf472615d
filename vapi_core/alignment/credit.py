"""Credit per token: a token answers for the error near it, not for that of the whole image. Ours, not the paper's.

Under teacher forcing the tokens of a rollout are drawn independently of each other, and the decoder shows a token near
its own cell. The rest of the reward is noise to that token's policy gradient. docs/credit.md has the argument and its
limits. Shapes: B images, G rollouts an image, T tokens on a grid of h rows and w columns, row-major.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Credit = Literal["image", "token", "token-3x3"]  # the paper's | the token's own cell | and the eight around it


def cell_means(error_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """Means [..., h * w] of a map [..., H, W] over the cells of a grid (h, w) that covers the same image.

    Every pixel counts by the area that it shares with a cell. So the mean over the cells is the mean of the map, up to
    rounding, whatever the sizes: a pixel that several cells share is divided among them, a coarse one fills them all.
    """
    rows, columns = (_overlaps(n, size, error_map) for n, size in zip(grid, error_map.shape[-2:], strict=True))
    return (rows @ error_map @ columns.T).flatten(-2)


def _overlaps(cells: int, pixels: int, like: Tensor) -> Tensor:
    """Shares [cells, pixels] that pixels have of each cell of a line; a cell's add up to 1."""
    cell = torch.arange(cells, device=like.device)[:, None] * pixels  # in units in which both have whole edges
    pixel = torch.arange(pixels, device=like.device) * cells
    shared = torch.minimum(cell + pixels, pixel + cells) - torch.maximum(cell, pixel)
    return (shared.clamp(min=0) / pixels).to(like.dtype)


def neighbourhood_sums(rewards: Tensor, grid: tuple[int, int]) -> Tensor:
    """A ninth of the sum [B, G, T] of rewards [B, G, T] over the 3x3 cells around each token.

    At the border fewer cells are summed, and they too are divided by 9. A mean over the cells that exist would count
    the same cell more in a token at the border, so that the gradient of tokens there would be too long.
    """
    maps = rewards.unflatten(-1, grid)  # [B, G, h, w]
    return F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=True).flatten(-2)


def token_advantages(rewards: Tensor, clamp: float) -> Tensor:
    """Advantages [B, G, T] of rewards [B, G, T]: each token within its group, over one spread an image, clamped.

    (R - mean) / (spread + 1e-8). The mean is the token's over its group. The spread is the root mean square over the
    tokens of their unbiased std, so that tokens whose error hardly varies keep small advantages. In float64, for the
    reason that `group_advantages` gives.
    """
    wide = rewards.double()
    spread = wide.var(1, keepdim=True).mean(-1, keepdim=True).sqrt()  # [B, 1, 1]
    advantages = (wide - wide.mean(1, keepdim=True)) / (spread + 1e-8)
    return advantages.clamp(-clamp, clamp).to(rewards.dtype)
