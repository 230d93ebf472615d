"""Real digits, and classifiers of them that are trained briefly."""

import numpy as np
import torch

from vapi_core.data.sources import mnist_source
from vapi_core.randomness import stream
from vapi_core.training.classification import train_classifier


def some_digits(count: int = 700) -> tuple[np.ndarray, np.ndarray]:
    """Real digits uint8 [N, 28, 28, 3] and their labels [N], the same ones each time."""
    source = mnist_source(28)
    chosen = stream(0, "test digits").permutation(len(source.ids))[:count]
    return np.stack([source.load(i) for i in chosen]), source.labels[chosen]


def train_briefly(images: np.ndarray, labels: np.ndarray, architecture: str, seed: int = 0) -> torch.nn.Module:
    """A classifier of digits after one epoch."""
    return train_classifier(images, labels, architecture=architecture, num_classes=10, epochs=1, seed=seed)
