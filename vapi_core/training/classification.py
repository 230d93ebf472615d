"""How the small classifiers of `vapi_core.models.classifier` come to be: cross-entropy over augmented images."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vapi_core.data.images import to_tensor
from vapi_core.errors import ParameterError
from vapi_core.models.classifier import ARCHITECTURES, Classifier
from vapi_core.randomness import seed_torch, stream
from vapi_core.training.loop import Metrics, MicroBatch, OptimizationConfig, train

MINIMUM_SIZE = 8  # pixels; the plain network halves its input three times
ROTATION, SCALE, SHIFT = math.radians(12), 0.12, 0.1  # largest change of an augmented image; shift: of its side
LABEL_SMOOTHING = 0.05
WEIGHT_DECAY = 0.05


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    architecture: str,
    num_classes: int,
    epochs: int,
    seed: int,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    device: str | torch.device = "cpu",
    log: Callable[[int, Metrics], None] = lambda step, metrics: None,
) -> Classifier:
    """Trains a classifier from scratch; the same arguments and number of threads give the same bytes on one CPU.

    Args:
        images: uint8 [N, H, W, 3], may be memory-mapped.
        labels: int [N], in 0..num_classes - 1.
        architecture: "scorer" or "reward".
        log: called once per step with loss, accuracy on the augmented batch, gradient norm and learning rate.

    Returns:
        The classifier in evaluation mode, its parameters frozen.

    Raises:
        ParameterError: an unknown architecture, a label out of range, or images smaller than 8 pixels.
    """
    _check(images, labels, architecture, num_classes)
    seed_torch(seed, "classifier weights")
    classifier = ARCHITECTURES[architecture](num_classes).to(device).to(memory_format=torch.channels_last).train()

    def objective(batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        augmented = augment(to_tensor(images[batch.items]), stream(seed, "classifier augmentation", batch.step))
        targets = torch.from_numpy(labels[batch.items].astype(np.int64)).to(device)
        _, logits = classifier(augmented.to(device, memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, targets, label_smoothing=LABEL_SMOOTHING)
        return loss, {"accuracy": (logits.detach().argmax(1) == targets).float().mean()}

    steps = math.ceil(epochs * len(images) / batch_size)
    config = OptimizationConfig(
        learning_rate=learning_rate,
        steps=steps,
        batch_size=batch_size,
        schedule="cosine",
        warmup_steps=steps // 10,
        weight_decay=WEIGHT_DECAY,
    )
    train(classifier, objective, config, count=len(images), seed=seed, log=log)
    return classifier.eval().requires_grad_(False)


def _check(images: np.ndarray, labels: np.ndarray, architecture: str, num_classes: int) -> None:
    assert images.dtype == np.uint8 and images.shape == (len(labels), *images.shape[1:3], 3), images.shape
    if architecture not in ARCHITECTURES:
        raise ParameterError("architecture", f"there is no '{architecture}'; choose one of {', '.join(ARCHITECTURES)}.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ParameterError("num_classes", f"is {num_classes}, but the labels go {labels.min()}..{labels.max()}.")
    if min(images.shape[1:3]) < MINIMUM_SIZE:
        raise ParameterError(
            "image_size", f"{images.shape[1:3]} is too small for a classifier; it needs {MINIMUM_SIZE} pixels."
        )


def augment(images: Tensor, random: np.random.Generator) -> Tensor:
    """Turns, scales and shifts every image [N, 3, H, W] a little; what comes into view repeats the border."""
    draws = torch.from_numpy(random.uniform(-1, 1, (4, len(images)))).float()
    angle, scale = draws[0] * ROTATION, 1 + draws[1] * SCALE
    cos, sin, shift = scale * angle.cos(), scale * angle.sin(), draws[2:] * 2 * SHIFT  # a side is 2 grid units long
    rows = [torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)  # [N, H, W, 2]
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
