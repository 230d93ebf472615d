"""LPIPS is the official one; features of a reference serve a whole group of rollouts."""

import json

import pytest
import torch
from torch import nn

from tests.reference import REFERENCE, load_fixture, needs_reference
from vapi_core.errors import FileError
from vapi_core.models.perceptual import (
    HEADS_FILE,
    LPIPS,
    VGG_FILE,
    VGG_SLICES,
    FeatureDistance,
    load_lpips,
    unit_normalize,
)
from vapi_core.scoring.classifier import PlainClassifier


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(params=["lpips", "classifier"])
def network(request):
    torch.manual_seed(0)
    if request.param == "classifier":
        return FeatureDistance(PlainClassifier(10))
    lpips = LPIPS()
    for number in range(len(VGG_SLICES)):
        getattr(lpips, f"lin{number}").weight().abs_()  # published heads are non-negative
    return lpips


@needs_reference
def test_lpips_has_the_official_names_and_shapes():
    layout = json.loads((REFERENCE / "lpips/lpips_vgg_layout.json").read_text())["state_dict"]
    assert {n: list(t.shape) for n, t in LPIPS().state_dict().items()} == {n: v["shape"] for n, v in layout.items()}


@needs_reference
def test_lpips_arithmetic_equals_the_official_one():
    _, tensors = load_fixture("lpips/lpips_arithmetic")
    lpips = LPIPS()
    for number in range(len(VGG_SLICES)):
        getattr(lpips, f"lin{number}").model[1].weight = nn.Parameter(tensors[f"in.lin{number}"])
    a, b = ([unit_normalize(tensors[f"in.feat{i}_{s}"]) for s in range(5)] for i in (0, 1))
    torch.testing.assert_close(lpips.distance(a, b), tensors["out.lpips"].flatten(), atol=1e-6, rtol=0)
    torch.testing.assert_close(lpips.scaling_layer(tensors["in.image0"]), tensors["out.scaled0"], atol=1e-6, rtol=0)


def test_vgg_slices_equal_torchvisions_layers(images):
    from torchvision.models import vgg16

    torch.manual_seed(0)
    vgg, lpips = vgg16(weights=None).features.eval(), LPIPS()
    for number in range(1, 6):
        for index, convolution in getattr(lpips.net, f"slice{number}").items():
            convolution.load_state_dict(vgg[int(index)].state_dict())
    x, expected = lpips.scaling_layer(images), []
    for layer in vgg[:30]:
        x = layer(x)
        expected.append(x)
    for features, last in zip(lpips.features(images), (3, 8, 15, 22, 29), strict=True):
        torch.testing.assert_close(features, unit_normalize(expected[last]))


def test_an_image_has_no_distance_to_itself_and_the_same_to_another_either_way(network, images):
    a, b = network.features(images), network.features(images.flip(0))
    assert torch.equal(network.distance(a, a), torch.zeros(2))
    assert (network.distance(a, b) > 0).all()
    torch.testing.assert_close(network.distance(a, b), network.distance(b, a))


def test_one_reference_serves_a_group_of_rollouts(network, images):
    rollouts = torch.rand(2, 3, 3, 32, 32) * 2 - 1  # [B, G, 3, H, W]
    shared = network.distance(
        [f.unflatten(0, (2, 3)) for f in network.features(rollouts.flatten(0, 1))],
        [f[:, None] for f in network.features(images)],
    )
    repeated = network.distance(
        network.features(rollouts.flatten(0, 1)), network.features(images.repeat_interleave(3, 0))
    )
    torch.testing.assert_close(shared.flatten(), repeated)


def test_the_network_is_frozen_but_the_gradient_reaches_the_image(network, images):
    images.requires_grad_()
    network.distance(network.features(images), network.features(images.detach().flip(0))).sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_published_files_load_from_a_folder(tmp_path, images):
    torch.manual_seed(1)
    made = LPIPS()
    state = made.state_dict()
    vgg = {f"features.{n.split('.', 2)[2]}": t for n, t in state.items() if n.startswith("net.")}
    torch.save({**vgg, "classifier.0.weight": torch.zeros(1)}, tmp_path / VGG_FILE)
    torch.save({n: t for n, t in state.items() if n.startswith("lin")}, tmp_path / HEADS_FILE)
    for loaded, own in zip(load_lpips(tmp_path).features(images), made.features(images), strict=True):
        assert torch.equal(loaded, own)


def test_missing_weights_are_named_with_what_to_do(tmp_path):
    with pytest.raises(FileError, match=rf"{VGG_FILE}.*missing.*align\.lpips_checkpoint"):
        load_lpips(tmp_path)


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / VGG_FILE)
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / HEADS_FILE)
    with pytest.raises(FileError, match=r"net\.slice1"):
        load_lpips(tmp_path)
