"""Windows around the objects of scenes, which the reward's classifier learns from: what a window shows is its class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vapi_core.scenes.source import DIGITS, PALETTE

WINDOW_CLASSES = len(DIGITS) * len(PALETTE)


def object_windows(images: np.ndarray, annotations: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Windows around the objects of scenes, and what they show: digit and color as one number (`WINDOW_CLASSES`).

    Args:
        images: uint8 [N, S, S, 3].
        annotations: of the N images, as `plan_scenes` makes them.

    Returns:
        uint8 [M, S / 2, S / 2, 3] and int64 [M].
    """
    side = images.shape[1] // 2
    windows, labels = [], []
    for image, annotation in zip(images, annotations, strict=True):
        padded = np.pad(image, ((side, side), (side, side), (0, 0)))
        for thing in annotation["objects"]:
            x, y, width, height = thing["box"]
            left, top = x + (width - side) // 2 + side, y + (height - side) // 2 + side
            windows.append(padded[top : top + side, left : left + side])
            labels.append(DIGITS.index(thing["class"]) * len(PALETTE) + list(PALETTE).index(thing["color"]))
    return np.stack(windows), np.array(labels, dtype=np.int64)
