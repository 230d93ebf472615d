"""Rewards of AR-GRPO: models from outside that judge an image by its condition, never by a reference image.

"class_likelihood" is the probability that a classifier gives to the wanted class. "clip_score" and "hpsv2" are cosines
between a prompt and the image under a CLIP model (Hessel et al. 2021, arXiv:2104.08718, without the factor 2.5; Wu et
al. 2023, arXiv:2306.09341): the caption itself, as in the paper's table 1, or a sentence that names the class. All lie
in [-1, 1], so that weights compare.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vapi_core.data.images import to_uint8


class ExternalReward(Protocol):
    """A reward model that knows the classes or the prompts of a data set's items."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor, items: np.ndarray) -> Tensor:
        """Rewards [N] of images [N, 3, H, W] in [-1, 1], made for the conditions of these items [N]."""
        ...


class ClassLikelihood:
    """Probability of the wanted class under a classifier: images [N, 3, H, W] -> (features, logits [N, K])."""

    name = "class_likelihood"

    def __init__(self, classifier: nn.Module, classes: np.ndarray):
        """`classes` holds the class id of every item of the data set."""
        self.classifier, self.classes = classifier.eval().requires_grad_(False), classes

    @torch.no_grad()
    def __call__(self, images: Tensor, items: np.ndarray) -> Tensor:
        _, logits = self.classifier(images)
        wanted = torch.from_numpy(self.classes[items].astype(np.int64)).to(logits.device)
        return logits.softmax(-1).gather(1, wanted[:, None])[:, 0]


class ImageTextModel(Protocol):
    """What CLIP score and HPSv2 need of a CLIP model."""

    def encode_images(self, images: Sequence[Any]) -> Tensor:
        """PIL images to unit vectors [N, D]."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to unit vectors [N, D]."""
        ...


class PromptSimilarity:
    """Cosine between an image and its prompt."""

    def __init__(self, name: str, model: ImageTextModel, prompts: Sequence[str]):
        """`prompts` holds the prompt of every item of the data set; `name` is "clip_score" or "hpsv2"."""
        self.name, self.model, self.prompts = name, model, prompts

    @torch.no_grad()
    def __call__(self, images: Tensor, items: np.ndarray) -> Tensor:
        from PIL import Image

        unique, place = np.unique(items, return_inverse=True)  # a group shares its prompt
        texts = self.model.encode_texts([self.prompts[item] for item in unique])  # [U, D]
        vectors = self.model.encode_images([Image.fromarray(pixels) for pixels in to_uint8(images)])  # [N, D]
        return (vectors * texts[torch.from_numpy(place).to(texts.device)]).sum(-1)
