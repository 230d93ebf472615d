"""Grids of images as PNG, for people."""

from pathlib import Path

import numpy as np
from PIL import Image

from vapi_core.files import atomic_path

MIN_SIDE = 56  # pixels: smaller images are enlarged by whole factors


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """One picture [rows * H, columns * W, 3] of images [N, H, W, 3], row by row; the last row is filled with white."""
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * columns, h, w, 3), 255, np.uint8)
    canvas[:n] = images
    return canvas.reshape(rows, columns, h, w, 3).swapaxes(1, 2).reshape(rows * h, columns * w, 3)


def enlarged_tile(images: np.ndarray, columns: int) -> np.ndarray:
    """`tile` of images whose side is at least `MIN_SIDE`, or nearly: small ones are enlarged."""
    scale = max(1, MIN_SIDE // images.shape[1])
    return tile(images, columns).repeat(scale, 0).repeat(scale, 1)


def save_grid(path: Path, images: np.ndarray, columns: int) -> None:
    """Writes images uint8 [N, H, W, 3] as one PNG."""
    picture = enlarged_tile(images, columns)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
