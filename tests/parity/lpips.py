"""Checks of LPIPS: the layout of its state dict, and its formula on stored feature maps."""

from collections.abc import Iterator

from torch import nn

from tests.parity.fixtures import Check, Fixture, close, exact
from vapi_core.models.perceptual import LPIPS, SCALE, SHIFT, VGG_SLICES, unit_normalize


def check_lpips_layout(fixture: Fixture) -> Iterator[Check]:
    """lpips/lpips_vgg_layout: every tensor by name and shape, the heads' file, and the scaling of images."""
    official = [(name, entry["shape"]) for name, entry in fixture.description["state_dict"].items()]
    own = {name: list(value.shape) for name, value in LPIPS().state_dict().items()}
    yield exact(f"names and shapes of {len(official)} tensors", list(own.items()), official)
    heads = {name: shape for name, shape in own.items() if name.startswith("lin")}
    yield exact("tensors of the heads' file", heads, fixture.description["vgg_pth_tensors"])
    scaling = fixture.description["scaling"]
    yield exact("shift and scale", [list(SHIFT), list(SCALE)], [scaling["shift"], scaling["scale"]])


def check_lpips_arithmetic(fixture: Fixture) -> Iterator[Check]:
    """lpips/lpips_arithmetic: the formula, with the VGG's feature maps given."""
    lpips = LPIPS()
    for number in range(len(VGG_SLICES)):
        getattr(lpips, f"lin{number}").model[1].weight = nn.Parameter(fixture[f"in.lin{number}"], requires_grad=False)
    a, b = ([unit_normalize(fixture[f"in.feat{i}_{s}"]) for s in range(len(VGG_SLICES))] for i in (0, 1))
    yield close("distance", lpips.distance(a, b), fixture["out.lpips"].flatten(), 1e-6)
    for i in (0, 1):
        yield close(f"scaled image {i}", lpips.scaling_layer(fixture[f"in.image{i}"]), fixture[f"out.scaled{i}"], 1e-6)
