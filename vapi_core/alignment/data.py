"""What an alignment trains on: cached tokens, classes and, for rewards, the images they were made from."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vapi_core.images import to_tensor


@dataclass(frozen=True)
class AlignmentData:
    """Arrays of the same N images; memory-mapped ones are read batch by batch."""

    tokens: np.ndarray  # [N, T]
    class_ids: np.ndarray  # [N]
    images: np.ndarray  # [N, H, W, 3] uint8
    device: torch.device

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.class_ids) == len(self.images)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, items: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens [B, T] and class ids [B] of these items."""
        tokens = torch.from_numpy(self.tokens[items].astype(np.int64)).to(self.device)
        return tokens, torch.from_numpy(self.class_ids[items].astype(np.int64)).to(self.device)

    def reference_images(self, items: np.ndarray) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of these items."""
        return to_tensor(self.images[items], self.device)
