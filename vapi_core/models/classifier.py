"""Small image classifiers that train in seconds: one scores samples, the other is a perceptual network for the reward.

They are as unlike as small networks can be, because a reward network of the scorer's own kind flatters: "scorer" is a
residual network (batch norm, GELU, strides), "reward" a plain VGG-like one (no norm, ReLU, max pooling). Train them on
different images and with different seeds. A third one, "uci", scores too. It has seen no MNIST digit: it looks at
thumbnails of 8 pixels, the size of the UCI digits that it learns from.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vapi_core.errors import FileError
from vapi_core.files import atomic_path, read_checked_json, sha256_file, write_checked_json
from vapi_core.models.weights import check_savable, load_strictly, read_state_dict


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


class ThumbnailClassifier(nn.Module):
    """Architecture "uci": two convolutions and a dense layer over a thumbnail of 8 x 8 gray pixels.

    UCI's digits fill their image; those of MNIST lie in the central 20 rows, which are cut out before they are reduced.
    """

    architecture = "uci"
    side, rows, columns = 8, 20, 24

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, 1, 1), nn.GELU(), nn.Conv2d(32, 64, 3, 2, 1), nn.GELU(), nn.Flatten()
        )
        self.dense = nn.Linear(64 * (self.side // 2) ** 2, 64)
        self.head = nn.Linear(64, num_classes)

    def thumbnails(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [-1, 1] -> [N, 1, 8, 8] in [-1, 1]; those of 8 pixels as they are."""
        gray = images.mean(1, keepdim=True)
        height, width = gray.shape[-2:]
        if (height, width) == (self.side, self.side):
            return gray
        top, left = max(0, (height - self.rows) // 2), max(0, (width - self.columns) // 2)
        digits = gray[..., top : height - top, left : width - left]
        return F.interpolate(digits, (self.side, self.side), mode="bilinear", antialias=True).clamp(-1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W] in [-1, 1] -> penultimate features [N, 64], logits [N, K]."""
        features = F.gelu(self.dense(self.convolutions(self.thumbnails(images))))
        return features, self.head(features)


Classifier = ResidualClassifier | PlainClassifier | ThumbnailClassifier
ARCHITECTURES: dict[str, type[Classifier]] = {
    network.architecture: network for network in (ResidualClassifier, PlainClassifier, ThumbnailClassifier)
}


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
    write_checked_json(weights.with_suffix(".json"), description)


def load_classifier(directory: Path | str, device: str | torch.device = "cpu", remedy: str = "") -> Classifier:
    """Reads what `save_classifier` wrote; in evaluation mode, its parameters frozen.

    Raises:
        FileError: a file is missing or damaged, or the two do not belong together.
    """
    weights = Path(directory) / "classifier.safetensors"
    description = read_checked_json(weights.with_suffix(".json"), remedy)
    if not isinstance(description, dict) or description.get("architecture") not in ARCHITECTURES:
        raise FileError(weights.with_suffix(".json"), "does not describe a classifier.", remedy)
    if not weights.is_file():
        raise FileError(weights, "the file is missing.", remedy)
    if sha256_file(weights) != description.get("weights_sha256"):
        raise FileError(weights, "these are not the weights that classifier.json beside it describes.", remedy)
    try:
        classifier = ARCHITECTURES[description["architecture"]](description["num_classes"])
        load_strictly(classifier, read_state_dict(weights, remedy), weights, remedy)
    except (RuntimeError, KeyError) as error:
        raise FileError(weights, f"the file is damaged ({error}).", remedy) from None
    return classifier.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
