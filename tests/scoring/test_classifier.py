"""Small classifiers trained in the DAG, on real digits."""

import json
import math

import numpy as np
import pytest
import torch

from vapi_core.data.sources import mnist_source
from vapi_core.errors import FileError, ParameterError
from vapi_core.images import to_tensor
from vapi_core.randomness import stream
from vapi_core.scoring.classifier import (
    ARCHITECTURES,
    PlainClassifier,
    accuracy,
    augment,
    load_classifier,
    save_classifier,
    train_classifier,
)


@pytest.fixture(scope="module")
def digits():
    source = mnist_source(28)
    chosen = stream(0, "test digits").permutation(len(source.ids))[:700]
    return np.stack([source.load(i) for i in chosen]), source.labels[chosen]


def train_briefly(images, labels, architecture, seed=0):
    return train_classifier(images, labels, architecture=architecture, num_classes=10, epochs=1, seed=seed)


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
def test_a_classifier_comes_back_from_disk_as_it_was(digits, architecture, tmp_path):
    images, labels = digits[0][:64], digits[1][:64]
    classifier = train_briefly(images, labels, architecture)
    save_classifier(classifier, tmp_path, made_from={"images": "abc"})
    loaded = load_classifier(tmp_path)
    assert type(loaded) is type(classifier)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for before, after in zip(classifier(to_tensor(images)), loaded(to_tensor(images)), strict=True):
        torch.testing.assert_close(after, before)
    assert json.loads((tmp_path / "classifier.json").read_text())["made_from"] == {"images": "abc"}


def test_the_reward_network_shows_a_map_of_features_per_stage():
    maps = PlainClassifier(10).stages(torch.zeros(2, 3, 28, 28))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 28, 28), (2, 32, 14, 14), (2, 64, 7, 7), (2, 128, 3, 3)]
    assert all((m >= 0).all() for m in maps)


def test_gradients_reach_the_pixels_through_every_stage_of_a_frozen_reward_network():
    torch.manual_seed(0)
    network = PlainClassifier(10).eval().requires_grad_(False)
    for stage in range(4):
        images = torch.rand(1, 3, 28, 28, requires_grad=True)
        network.stages(images)[stage].sum().backward()
        assert images.grad.abs().sum() > 0


def test_the_two_architectures_have_no_layer_kind_beyond_convolutions_in_common():
    scorer, reward = (
        {type(m).__name__ for m in ARCHITECTURES[name](10).modules() if not list(m.children())}
        for name in ("scorer", "reward")
    )
    assert scorer & reward == {"Conv2d", "Linear"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (17, 25)])
def test_images_of_any_size_from_8_pixels_fit(architecture, size):
    features, logits = ARCHITECTURES[architecture](7).eval()(torch.zeros(2, 3, *size))
    assert features.shape == (2, 128)
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


def test_accuracy_is_the_share_of_hits():
    logits = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert accuracy(logits, np.array([1, 0, 0, 0])) == 0.75


def test_impossible_arguments_are_refused_by_name(digits):
    images, labels = digits[0][:20], digits[1][:20]
    with pytest.raises(ParameterError, match="^architecture: .*scorer, reward"):
        train_briefly(images, labels, "resnet50")
    with pytest.raises(ParameterError, match="^num_classes: is 3"):
        train_classifier(images, labels, architecture="scorer", num_classes=3, epochs=1, seed=0)
    with pytest.raises(ParameterError, match="^image_size: "):
        train_briefly(images[:, :7, :7], labels, "reward")


def test_a_missing_damaged_or_foreign_file_is_named_with_a_remedy(tmp_path):
    weights, description = tmp_path / "classifier.safetensors", tmp_path / "classifier.json"
    with pytest.raises(FileError, match="classifier.json: the file is missing.*dvc repro"):
        load_classifier(tmp_path)
    save_classifier(PlainClassifier(10), tmp_path)
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(FileError, match="classifier.safetensors: these are not the weights.*dvc repro"):
        load_classifier(tmp_path)
    weights.unlink()
    with pytest.raises(FileError, match="classifier.safetensors: the file is missing"):
        load_classifier(tmp_path)
    description.write_text("[]")
    with pytest.raises(FileError, match="does not describe a classifier"):
        load_classifier(tmp_path)
    save_classifier(PlainClassifier(10), tmp_path)
    description.write_text(description.read_text().replace('"num_classes": 10', '"num_classes": 11'))
    with pytest.raises(FileError, match=r"head.weight has shape \[10, 128\], not \[11, 128\].*dvc repro"):
        load_classifier(tmp_path)
