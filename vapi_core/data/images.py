"""Two forms of images: uint8 arrays [N, H, W, 3] at rest, float tensors [N, 3, H, W] in [-1, 1] in the networks."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vapi_core.models.llamagen.tokenizer import Tokenizer

PIXELS_OF_A_PASS = 2**22  # what the networks of images take at once, to bound their memory


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.array(images)).to(device)  # a copy: memory maps are read-only
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def to_uint8(images: Tensor) -> np.ndarray:
    """Float [N, 3, H, W] to uint8 [N, H, W, 3], rounded to nearest and clamped, by LlamaGen's own arithmetic
    (`sample_c2i_ddp.py`): another form of the same formula rounds some pixels to the other side."""
    pixels = (images.float() * 127.5 + 128.0).clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def resize_bicubic(images: Tensor, size: int) -> Tensor:
    """Float [N, 3, H, W] to [N, 3, size, size], without antialiasing: how LlamaGen's `sample_c2i_ddp.py` comes from
    images of 384 pixels to the 256 that are scored. Bicubic overshoots, so clamp afterwards."""
    return F.interpolate(images.float(), size=(size, size), mode="bicubic")


def images_of_a_pass(side: int) -> int:
    """How many images of this side an encoder or decoder should take at once: 64 digits, 28 photographs at 384.

    A CPU decodes digits a quarter faster by 64 than by 256, whose feature maps leave its caches.
    """
    return max(1, min(64, PIXELS_OF_A_PASS // side**2))


@torch.inference_mode()
def encode_images(tokenizer: Tokenizer, images: np.ndarray, device: torch.device, batch_size: int) -> np.ndarray:
    """Tokens [B, T] of uint8 images [B, H, W, 3], computed in batches."""
    parts = [
        tokenizer.encode(to_tensor(images[start : start + batch_size], device)).cpu().numpy()
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)
