"""Small classifiers learn quickly, the same again under the same seed."""

import math

import numpy as np
import pytest
import torch

from tests.digits import some_digits, train_briefly
from vapi_core.data.images import to_tensor
from vapi_core.errors import ParameterError
from vapi_core.models.classifier import ARCHITECTURES, accuracy, save_classifier
from vapi_core.randomness import stream
from vapi_core.training.classification import augment, train_classifier


@pytest.fixture(scope="module")
def digits():
    return some_digits()


@pytest.mark.parametrize(("architecture", "epochs"), {"scorer": 3, "reward": 8}.items())
def test_a_few_epochs_on_a_few_digits_already_recognise_unseen_ones(digits, architecture, epochs):
    images, labels = digits
    losses = []
    classifier = train_classifier(
        images[:400],
        labels[:400],
        architecture=architecture,
        num_classes=10,
        epochs=epochs,
        seed=0,
        log=lambda step, metrics: losses.append(metrics["loss"]),
    )
    _, logits = classifier(to_tensor(images[400:]))
    assert accuracy(logits.numpy(), labels[400:]) > 0.6
    assert len(losses) == math.ceil(epochs * 400 / 32)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(digits, architecture, tmp_path):
    images, labels = digits[0][:64], digits[1][:64]
    for name, seed in {"first": 0, "again": 0, "other": 1}.items():
        save_classifier(train_briefly(images, labels, architecture, seed), tmp_path / name)
    first, again, other = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("first", "again", "other")
    )
    assert set(first) == {"classifier.safetensors", "classifier.json"}
    assert first == again
    assert first["classifier.safetensors"] != other["classifier.safetensors"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (17, 25)])
def test_images_of_any_size_from_8_pixels_fit(architecture, size):
    network = ARCHITECTURES[architecture](7).eval()
    features, logits = network(torch.zeros(2, 3, *size))
    assert features.shape == (2, network.head.in_features)
    assert logits.shape == (2, 7)


def test_augmentation_moves_the_digit_but_keeps_it_in_the_picture(digits):
    images = to_tensor(digits[0][:64])
    moved = augment(images, stream(0, "test"))
    assert moved.shape == images.shape
    assert ((moved - images).abs().amax((1, 2, 3)) > 0.5).all()
    ink, moved_ink = ((x + 1).sum((1, 2, 3)) for x in (images, moved))
    assert ((moved_ink / ink) > 0.6).all()
    assert ((moved_ink / ink) < 1.6).all()
    torch.testing.assert_close(moved, augment(images, stream(0, "test")))


def test_impossible_arguments_are_refused_by_name(digits):
    images, labels = digits[0][:20], digits[1][:20]
    with pytest.raises(ParameterError, match="^architecture: .*scorer, reward"):
        train_briefly(images, labels, "resnet50")
    with pytest.raises(ParameterError, match="^num_classes: is 3"):
        train_classifier(images, labels, architecture="scorer", num_classes=3, epochs=1, seed=0)
    with pytest.raises(ParameterError, match="^image_size: "):
        train_briefly(images[:, :7, :7], labels, "reward")
