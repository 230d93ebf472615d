"""Small classifiers trained in the DAG, on real digits."""

import json

import numpy as np
import pytest
import torch

from tests.digits import some_digits, train_briefly
from vapi_core.data.images import to_tensor
from vapi_core.data.sources import uci_digits
from vapi_core.errors import FileError
from vapi_core.files import read_checked_json, write_checked_json
from vapi_core.models.classifier import (
    ARCHITECTURES,
    PlainClassifier,
    ThumbnailClassifier,
    accuracy,
    load_classifier,
    save_classifier,
)
from vapi_core.training.classification import train_classifier


@pytest.fixture(scope="module")
def digits():
    return some_digits()


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


def test_the_network_of_thumbnails_sees_the_box_in_which_a_digit_lies():
    network = ThumbnailClassifier(10)
    border, digit = torch.full((1, 3, 32, 32), -1.0), torch.full((1, 3, 32, 32), -1.0)
    border[..., :5, :], digit[..., 6:26, 4:28] = 1.0, 1.0
    assert network.thumbnails(border).max() < -0.99 and network.thumbnails(digit).min() > 0.99
    assert network.thumbnails(torch.zeros(2, 3, 28, 28)).shape == (2, 1, 8, 8)
    small = torch.rand(2, 3, 8, 8)
    assert torch.equal(network.thumbnails(small), small.mean(1, keepdim=True))


def test_a_network_of_thumbnails_that_learned_from_uci_s_digits_reads_mnist_s(digits):
    network = train_classifier(*uci_digits(), architecture="uci", num_classes=10, epochs=6, batch_size=64, seed=0)
    images, labels = digits
    with torch.inference_mode():
        _, logits = network(to_tensor(images))
    assert accuracy(logits.numpy(), labels) > 0.5  # by chance .1


def test_a_missing_damaged_or_foreign_file_is_named_with_a_remedy(tmp_path):
    weights, description = tmp_path / "classifier.safetensors", tmp_path / "classifier.json"
    with pytest.raises(FileError, match="classifier.json: the file is missing.*Make it anew"):
        load_classifier(tmp_path, remedy="Make it anew.")
    save_classifier(PlainClassifier(10), tmp_path)
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(FileError, match="classifier.safetensors: these are not the weights.*Make it anew"):
        load_classifier(tmp_path, remedy="Make it anew.")
    weights.unlink()
    with pytest.raises(FileError, match="classifier.safetensors: the file is missing"):
        load_classifier(tmp_path, remedy="Make it anew.")
    write_checked_json(description, {})
    with pytest.raises(FileError, match="does not describe a classifier"):
        load_classifier(tmp_path, remedy="Make it anew.")
    save_classifier(PlainClassifier(10), tmp_path)
    write_checked_json(description, read_checked_json(description) | {"num_classes": 11})
    with pytest.raises(FileError, match=r"head.weight has shape \[10, 128\], not \[11, 128\].*Make it anew"):
        load_classifier(tmp_path, remedy="Make it anew.")


def test_accuracy_is_the_share_of_hits():
    logits = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert accuracy(logits, np.array([1, 0, 0, 0])) == 0.75
