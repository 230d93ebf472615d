"""What a generator is trained on: cached tokens, conditions and, for rewards, the images that they were made of."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vapi_core.data.images import to_tensor
from vapi_core.models.policy import Condition, Conditions


def batch_conditions(conditions: np.ndarray | Conditions, items: np.ndarray, device: torch.device) -> Condition:
    """The conditions of these items, of class ids [N] or of captions."""
    if isinstance(conditions, np.ndarray):
        return torch.from_numpy(conditions[items].astype(np.int64)).to(device)
    return conditions.batch(items, device)


@dataclass(frozen=True)
class AlignmentData:
    """Arrays of the same N images; memory-mapped ones are read batch by batch."""

    tokens: np.ndarray  # [N, T]
    conditions: np.ndarray | Conditions  # class ids [N], or captions
    images: np.ndarray  # [N, H, W, 3] uint8
    device: torch.device

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.conditions) == len(self.images)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, items: np.ndarray) -> tuple[Tensor, Condition]:
        """Tokens [B, T] and the conditions of these items."""
        tokens = torch.from_numpy(self.tokens[items].astype(np.int64)).to(self.device)
        return tokens, batch_conditions(self.conditions, items, self.device)

    def reference_images(self, items: np.ndarray) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of these items."""
        return to_tensor(self.images[items], self.device)
