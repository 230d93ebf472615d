"""Rewards that judge an image by its condition."""

import numpy as np
import pytest
import torch

from vapi_core.alignment.external_reward import ClassLikelihood, PromptSimilarity
from vapi_core.models.classifier import PlainClassifier


def test_the_class_likelihood_is_the_probability_of_the_wanted_class():
    classifier = PlainClassifier(4)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    reward = ClassLikelihood(classifier, np.arange(4, dtype=np.uint8))  # item k is of class k
    over_classes = torch.stack([reward(images, np.full(4, k)) for k in range(4)])
    assert torch.allclose(over_classes.sum(0), torch.ones(4), atol=1e-5)
    _, logits = classifier(images)
    wanted = logits.argmax(1)
    assert (reward(images, wanted.numpy()) >= over_classes.amax(0) - 1e-6).all()
    assert not any(p.requires_grad for p in classifier.parameters())


class Colors:
    """An image-text model that knows two words: the vector of an image is its mean red and blue."""

    def encode_texts(self, texts):
        return torch.tensor([[1.0, 0.0] if "red" in text else [0.0, 1.0] for text in texts])

    def encode_images(self, images):
        means = torch.tensor([image.resize((1, 1)).getpixel((0, 0)) for image in images]).float()[:, [0, 2]]
        return torch.nn.functional.normalize(means, dim=-1)


def test_a_prompt_reward_compares_every_image_with_the_prompt_of_its_item():
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 8, 8)
    reward = PromptSimilarity("clip_score", Colors(), ["never used", "a photo of red", "a photo of blue"])
    values = reward(torch.stack([red, red, red]), np.array([2, 1, 2]))
    assert values.tolist() == pytest.approx([0.0, 1.0, 0.0])
    assert reward.name == "clip_score"


def test_a_prompt_that_a_group_shares_is_encoded_once():
    class Counting(Colors):
        texts = 0

        def encode_texts(self, texts):
            self.texts += len(texts)
            return super().encode_texts(texts)

    model = Counting()
    reward = PromptSimilarity("hpsv2", model, ["red", "blue"])
    assert reward(torch.zeros(8, 3, 4, 4), np.arange(2).repeat(4)).shape == (8,) and model.texts == 2
