"""Small image classifiers that train in seconds: one scores samples, the other is a perceptual network for the reward.

They are as unlike as small networks can be, because a reward network of the scorer's own kind flatters: "scorer" is a
residual network (batch norm, GELU, strides), "reward" a plain VGG-like one (no norm, ReLU, max pooling). Train them on
different images and with different seeds.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vapi_core.errors import FileError, ParameterError
from vapi_core.files import atomic_path, read_json, sha256_file, write_json
from vapi_core.images import to_tensor
from vapi_core.models.weights import check_savable, load_strictly, read_state_dict
from vapi_core.randomness import seed_torch, stream
from vapi_core.training import Metrics, OptimizationConfig, Slots, train

REMEDY = "To make it anew, run `dvc repro classifier`."
MINIMUM_SIZE = 8  # pixels; the plain network halves its input three times
ROTATION, SCALE, SHIFT = math.radians(12), 0.12, 0.1  # largest change of an augmented image; shift: of its side
LABEL_SMOOTHING = 0.05
WEIGHT_DECAY = 0.05


class ResidualBlock(nn.Module):
    """Pre-activation block (He et al. 2016, arXiv:1603.05027), its shortcut pooled and widened where its output is."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.widen = nn.Conv2d(width_in, width, 1, bias=False) if width != width_in else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(F.gelu(self.norm2(self.conv1(F.gelu(self.norm1(x))))))
        return self.widen(self.pool(x)) + inner


class ResidualClassifier(nn.Module):
    """Architecture "scorer": three residual blocks of 32, 64 and 128 channels at 1/2, 1/4 and 1/8 of the image."""

    architecture = "scorer"

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(3, 32, 5, 2, 2)
        self.blocks = nn.Sequential(ResidualBlock(32, 32, 1), ResidualBlock(32, 64, 2), ResidualBlock(64, 128, 2))
        self.norm = nn.BatchNorm2d(128)
        self.head = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W] in [-1, 1] -> penultimate features [N, 128], logits [N, K]."""
        features = F.gelu(self.norm(self.blocks(self.stem(images)))).mean((2, 3))
        return features, self.head(features)


class PlainClassifier(nn.Module):
    """Architecture "reward": four stages of two 3x3 convolutions, 16 to 128 channels, max pooling between them."""

    architecture = "reward"

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        widths = (3, 16, 32, 64, 128)
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.ReLU())
            for a, b in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.convolutions.modules():
            if isinstance(module, nn.Conv2d):  # eight layers without norm need He's variance to train at all
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def stages(self, images: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] in [-1, 1] -> the output of every stage, [N, 16 * 2^s, H / 2^s, W / 2^s] for s = 0..3."""
        maps: list[Tensor] = []
        for convolutions in self.convolutions:
            maps.append(convolutions(F.max_pool2d(maps[-1], 2) if maps else images))
        return maps

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W] in [-1, 1] -> penultimate features [N, 128], logits [N, K]."""
        features = self.stages(images)[-1].mean((2, 3))
        return features, self.head(features)


Classifier = ResidualClassifier | PlainClassifier
ARCHITECTURES: dict[str, type[Classifier]] = {"scorer": ResidualClassifier, "reward": PlainClassifier}


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

    def objective(slots: Slots) -> tuple[Tensor, dict[str, Tensor]]:
        batch = augment(to_tensor(images[slots.items]), stream(seed, "classifier augmentation", slots.step))
        targets = torch.from_numpy(labels[slots.items].astype(np.int64)).to(device)
        _, logits = classifier(batch.to(device, memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, targets, label_smoothing=LABEL_SMOOTHING)
        return loss, {"accuracy": (logits.detach().argmax(1) == targets).float().mean()}

    steps = math.ceil(epochs * len(images) / batch_size)
    config = OptimizationConfig(
        learning_rate, steps, batch_size, schedule="cosine", warmup_steps=steps // 10, weight_decay=WEIGHT_DECAY
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


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of logits [N, K] whose largest entry is the label [N]."""
    return float((logits.argmax(1) == labels).mean())


def save_classifier(classifier: Classifier, directory: Path | str, made_from: Mapping[str, Any] | None = None) -> None:
    """Writes `classifier.safetensors` and `classifier.json` into `directory`.

    Args:
        made_from: what the caller wants to keep on record in the JSON, e.g. hash of the images, seed, epochs.
    """
    weights = Path(directory) / "classifier.safetensors"
    state = {name: value.contiguous().cpu() for name, value in classifier.state_dict().items()}
    check_savable(state, weights)
    with atomic_path(weights) as temporary:
        save_file(state, temporary)
    description = {
        "kind": "classifier",
        "architecture": classifier.architecture,
        "num_classes": classifier.num_classes,
        "weights_sha256": sha256_file(weights),
        "made_from": dict(made_from or {}),
    }
    write_json(weights.with_suffix(".json"), description)


def load_classifier(directory: Path | str, device: str | torch.device = "cpu") -> Classifier:
    """Reads what `save_classifier` wrote; in evaluation mode, its parameters frozen.

    Raises:
        FileError: a file is missing or damaged, or the two do not belong together.
    """
    weights = Path(directory) / "classifier.safetensors"
    description = read_json(weights.with_suffix(".json"), REMEDY)
    if not isinstance(description, dict) or description.get("architecture") not in ARCHITECTURES:
        raise FileError(weights.with_suffix(".json"), "does not describe a classifier.", REMEDY)
    if not weights.is_file():
        raise FileError(weights, "the file is missing.", REMEDY)
    if sha256_file(weights) != description.get("weights_sha256"):
        raise FileError(weights, "these are not the weights that classifier.json beside it describes.", REMEDY)
    try:
        classifier = ARCHITECTURES[description["architecture"]](description["num_classes"])
        load_strictly(classifier, read_state_dict(weights, REMEDY), weights, REMEDY)
    except (RuntimeError, KeyError) as error:
        raise FileError(weights, f"the file is damaged ({error}).", REMEDY) from None
    return classifier.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
