"""LPIPS is the official one; features of a reference serve a whole group of rollouts."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.reference import REFERENCE, load_fixture, needs_reference
from tests.tiny import same_weights
from vapi_core.errors import FileError
from vapi_core.models.classifier import PlainClassifier
from vapi_core.models.perceptual import (
    HEADS_FILES,
    LPIPS,
    VGG_FILE,
    VGG_SLICES,
    FeatureDistance,
    load_lpips,
    unit_normalize,
)


def random_lpips(seed: int = 0) -> LPIPS:
    """Its heads are non-negative, as the published ones are."""
    torch.manual_seed(seed)
    lpips = LPIPS()
    for number in range(len(VGG_SLICES)):
        getattr(lpips, f"lin{number}").weight().abs_()
    return lpips


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(params=["lpips", "classifier"])
def network(request):
    if request.param == "lpips":
        return random_lpips()
    torch.manual_seed(0)
    return FeatureDistance(PlainClassifier(10))


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    return random_lpips(seed=1)


@pytest.fixture(scope="module")
def vgg_weights(lpips) -> dict[str, torch.Tensor]:
    """`lpips`'s VGG as torchvision names it, with a piece of the classifier that torchvision's file also holds."""
    state = {f"features.{n.split('.', 2)[2]}": t for n, t in lpips.state_dict().items() if n.startswith("net.")}
    return state | {"classifier.0.bias": torch.zeros(4096)}


@pytest.fixture(scope="module")
def heads(lpips) -> dict[str, torch.Tensor]:
    return {n: t for n, t in lpips.state_dict().items() if n.startswith("lin")}


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory, vgg_weights, heads):
    """A torch home in whose cache torchvision and torch-fidelity left their files."""
    home = tmp_path_factory.mktemp("torch")
    checkpoints = home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(vgg_weights, checkpoints / VGG_FILE)
    torch.save(heads, checkpoints / HEADS_FILES[1])
    return home


def torchvision_layers(weights: dict[str, torch.Tensor]) -> nn.Sequential:
    """`vgg16().features`, without the classifier's 120 million weights."""
    from torchvision.models.vgg import cfgs, make_layers

    layers = make_layers(cfgs["D"], batch_norm=False).eval()
    layers.load_state_dict({n.removeprefix("features."): t for n, t in weights.items() if n.startswith("features.")})
    return layers


@needs_reference
def test_lpips_has_the_official_names_and_shapes_in_the_official_order():
    layout = json.loads((REFERENCE / "lpips/lpips_vgg_layout.json").read_text())["state_dict"]
    ours = [(name, list(tensor.shape)) for name, tensor in LPIPS().state_dict().items()]
    assert ours == [(name, entry["shape"]) for name, entry in layout.items()]


@needs_reference
def test_lpips_arithmetic_equals_the_official_one():
    _, tensors = load_fixture("lpips/lpips_arithmetic")
    lpips = LPIPS()
    for number in range(len(VGG_SLICES)):
        getattr(lpips, f"lin{number}").model[1].weight = nn.Parameter(tensors[f"in.lin{number}"])
    a, b = ([unit_normalize(tensors[f"in.feat{i}_{s}"]) for s in range(5)] for i in (0, 1))
    torch.testing.assert_close(lpips.distance(a, b), tensors["out.lpips"].flatten(), atol=1e-6, rtol=0)
    for i in (0, 1):
        scaled = lpips.scaling_layer(tensors[f"in.image{i}"])
        torch.testing.assert_close(scaled, tensors[f"out.scaled{i}"], atol=1e-6, rtol=0)


def test_vgg_slices_equal_torchvisions_layers(lpips, vgg_weights, images):
    x, outputs = lpips.scaling_layer(images), []
    for layer in torchvision_layers(vgg_weights)[:30]:
        x = layer(x)
        outputs.append(x)
    for features, last in zip(lpips.features(images), (3, 8, 15, 22, 29), strict=True):
        torch.testing.assert_close(features, unit_normalize(outputs[last]))


def test_lpips_from_torch_fidelitys_cache_equals_torch_fidelitys_own(torch_home, vgg_weights, monkeypatch):
    from torch_fidelity import sample_similarity_lpips as theirs

    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    vgg = SimpleNamespace(features=torchvision_layers(vgg_weights))
    monkeypatch.setattr(theirs, "torchvision_load_pretrained_vgg16", lambda: vgg)
    bytes_a, bytes_b = torch.randint(256, (2, 3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    expected = theirs.SampleSimilarityLPIPS("lpips-vgg16")(bytes_a, bytes_b)  # of images in 0..255
    lpips = load_lpips(None)
    a, b = (lpips.features(x / 127.5 - 1) for x in (bytes_a, bytes_b))
    assert (expected > 1e-3).all()
    torch.testing.assert_close(lpips.distance(a, b), expected, rtol=1e-4, atol=0)


def test_without_heads_the_distance_is_two_minus_twice_the_cosine_averaged_over_space_and_stages():
    maps = [torch.rand(2, 4, 3, 3), torch.rand(2, 6, 2, 2)]
    a, b = ([unit_normalize(m[i : i + 1]) for m in maps] for i in (0, 1))
    stages = [(2 - 2 * torch.cosine_similarity(m[0], m[1], dim=0)).mean() for m in maps]
    distance = FeatureDistance(PlainClassifier(10)).distance(a, b)
    torch.testing.assert_close(distance, torch.stack(stages).mean()[None])


def test_the_stages_before_the_first_one_take_no_part(images):
    classifier = PlainClassifier(10)
    every, coarse = (FeatureDistance(classifier, first).features(images) for first in (0, 2))
    assert len(every) == 4 and len(coarse) == 2
    assert all(torch.equal(a, b) for a, b in zip(coarse, every[2:], strict=True))


def test_an_image_has_no_distance_to_itself_and_the_same_to_another_either_way(network, images):
    a, b = network.features(images), network.features(images.flip(0))
    assert torch.equal(network.distance(a, a), torch.zeros(2))
    assert (network.distance(a, b) > 0).all()
    torch.testing.assert_close(network.distance(a, b), network.distance(b, a))


def test_one_reference_serves_a_group_of_rollouts(network, images):
    rollouts = torch.rand(2, 3, 3, 32, 32) * 2 - 1  # [B, G, 3, H, W]
    rolled, reference = network.features(rollouts.flatten(0, 1)), network.features(images)
    shared = network.distance([f.unflatten(0, (2, 3)) for f in rolled], [f[:, None] for f in reference])
    repeated = network.distance(rolled, network.features(images.repeat_interleave(3, 0)))
    assert shared.shape == (2, 3)
    torch.testing.assert_close(shared.flatten(), repeated)


def test_the_network_is_frozen_but_the_gradient_reaches_every_image(network, images):
    images.requires_grad_()
    network.distance(network.features(images), network.features(images.detach().flip(0))).sum().backward()
    assert images.grad.flatten(1).norm(dim=1).min() > 0
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_the_gradient_is_finite_where_every_channel_is_dead(images):
    """Small networks are silent on flat background; there the gradient of the norm alone is 0 / 0."""
    classifier = PlainClassifier(10)
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.bias, -0.1)
    network = FeatureDistance(classifier)
    images[:, :, :16] = 0.0
    images.requires_grad_()
    features = network.features(images)
    assert (features[0].sum(1) == 0).any()
    network.distance(features, network.features(images.detach().flip(0))).sum().backward()
    assert images.grad.isfinite().all() and images.grad.any()


def test_in_bfloat16_the_features_take_half_the_memory_and_the_distance_stays_float32(network, images):
    exact = network.distance(network.features(images), network.features(images.flip(0)))
    network = copy.deepcopy(network).to(torch.bfloat16)
    a, b = network.features(images), network.features(images.flip(0))
    assert {f.dtype for f in a} == {torch.bfloat16}
    distance = network.distance(a, b)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, exact, rtol=0.05, atol=0)
    assert torch.equal(network.distance(a, a), torch.zeros(2))


def test_under_autocast_the_distance_is_the_same_float32(network, images):
    a, b = network.features(images), network.features(images.flip(0))
    exact = network.distance(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        distance = network.distance(a, b)
    assert distance.dtype == torch.float32 and torch.equal(distance, exact)


def test_a_bfloat16_norm_is_rounded_once_and_only_at_the_end():
    features = torch.rand(2, 64, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(unit_normalize(features), unit_normalize(features.float()).bfloat16())


@pytest.mark.parametrize("heads_file", HEADS_FILES)
def test_published_files_load_from_a_folder(tmp_path, torch_home, lpips, heads, heads_file):
    (tmp_path / VGG_FILE).symlink_to(torch_home / "hub" / "checkpoints" / VGG_FILE)
    torch.save(heads, tmp_path / heads_file)
    assert same_weights(load_lpips(tmp_path), lpips)


def test_a_whole_state_dict_loads_from_one_file(tmp_path, lpips):
    torch.save(lpips.state_dict(), tmp_path / "lpips.pth")
    assert same_weights(load_lpips(tmp_path / "lpips.pth"), lpips)


def test_missing_weights_are_named_with_what_to_do(tmp_path, torch_home, monkeypatch):
    with pytest.raises(FileError, match=rf"{VGG_FILE}: .*missing.*align\.lpips_checkpoint"):
        load_lpips(tmp_path)
    with pytest.raises(FileError, match=r"elsewhere: there is no such file or folder.*align\.lpips_checkpoint"):
        load_lpips(tmp_path / "elsewhere")
    (tmp_path / VGG_FILE).symlink_to(torch_home / "hub" / "checkpoints" / VGG_FILE)
    with pytest.raises(FileError, match=rf"{HEADS_FILES[0]}: .*missing.*{HEADS_FILES[1]}"):
        load_lpips(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    with pytest.raises(FileError, match=r"empty.*there is no such file or folder"):
        load_lpips(None)


def change(state: dict[str, torch.Tensor], name: str, tensor: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The state dict with one tensor replaced, added, or (None) left out."""
    rest = {n: t for n, t in state.items() if n != name}
    return rest if tensor is None else rest | {name: tensor}


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("features.10.weight", None, "is missing"),
        ("features.10.weight", torch.zeros(256, 128, 1, 1), r"has shape \[256, 128, 1, 1\], not \[256, 128, 3, 3\]"),
        ("features.34.weight", torch.zeros(1), "is unexpected"),  # VGG19 has one
    ],
)
def test_a_vgg_file_of_another_network_is_named_with_its_tensor(
    torch_home, tmp_path, vgg_weights, name, tensor, problem
):
    torch.save(change(vgg_weights, name, tensor), tmp_path / VGG_FILE)
    (tmp_path / HEADS_FILES[1]).symlink_to(torch_home / "hub" / "checkpoints" / HEADS_FILES[1])
    with pytest.raises(FileError, match=rf"{VGG_FILE}: .*{name} {problem}.*torchvision") as error:
        load_lpips(tmp_path)
    assert error.value.path == tmp_path / VGG_FILE


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("lin4.model.1.weight", None, "is missing"),
        ("lin0.model.1.weight", torch.zeros(1, 192, 1, 1), r"has shape \[1, 192, 1, 1\], not \[1, 64, 1, 1\]"),
    ],
)
def test_a_heads_file_of_another_network_is_named_with_its_tensor(torch_home, tmp_path, heads, name, tensor, problem):
    (tmp_path / VGG_FILE).symlink_to(torch_home / "hub" / "checkpoints" / VGG_FILE)
    torch.save(change(heads, name, tensor), tmp_path / HEADS_FILES[0])
    with pytest.raises(FileError, match=rf"{HEADS_FILES[0]}: .*{name} {problem}.*`lpips`") as error:
        load_lpips(tmp_path)
    assert error.value.path == tmp_path / HEADS_FILES[0]


def test_heads_alone_are_no_whole_state_dict(tmp_path, heads):
    torch.save(heads, tmp_path / "heads.pth")
    with pytest.raises(FileError, match=r"heads\.pth: .*scaling_layer\.shift is missing.*Put both into one folder"):
        load_lpips(tmp_path / "heads.pth")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": random_lpips}, tmp_path / "lpips.pth")
    with pytest.raises(FileError, match=r"lpips\.pth: .*could run code"):
        load_lpips(tmp_path / "lpips.pth")
