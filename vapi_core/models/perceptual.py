"""Perceptual distances for the reward: LPIPS-VGG16, and the same formula over a small classifier of the user's own data.

A distance is taken between features, so that the features of a reference image are computed once and serve all rollouts
of its group. Departure from the paper: its λ_p term is LPIPS, whose weights come from the web. The default profile, which
downloads nothing, puts a digit classifier trained in the DAG in VGG's place; without learned heads, every channel weighs
the same.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from vapi_core.errors import FileError
from vapi_core.models.checkpoints import load_strictly, read_state_dict

# torchvision's vgg16 `features`: index of the layer and its output channels; ReLUs and poolings carry no weights
VGG_SLICES: tuple[tuple[tuple[int, int], ...], ...] = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of LPIPS v0.1, for images in [-1, 1]
VGG_FILE, HEADS_FILE = "vgg16-397923af.pth", "vgg.pth"
REMEDY = (
    f"Put torchvision's {VGG_FILE} and LPIPS v0.1's {HEADS_FILE} (the package `lpips` ships the latter) into one folder "
    "and name it as align.lpips_checkpoint."
)


def unit_normalize(features: Tensor) -> Tensor:
    """Divides features [..., C, H, W] by their norm over channels; 1e-10 is added after the root, as in LPIPS."""
    return features / (features.square().sum(-3, keepdim=True).sqrt() + 1e-10)


class FeatureDistance(nn.Module):
    """Mean over stages of the spatial mean of squared differences between unit-normalised feature maps."""

    def __init__(self, network: nn.Module):
        """`network` has a method `stages`: images [N, 3, H, W] in [-1, 1] to a list of feature maps."""
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised feature maps [N, C, H, W] of each stage."""
        return [unit_normalize(f) for f in self.network.stages(images)]  # type: ignore[operator]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distances [...] of features [..., C, H, W] whose leading dimensions broadcast."""
        stages = [(x - y).square().sum(-3).mean((-1, -2)) for x, y in zip(a, b, strict=True)]
        return torch.stack(stages).mean(0)


class _Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[None, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.shift) / self.scale  # type: ignore[operator]


class _Head(nn.Module):
    """Non-negative weights of one slice's channels; the official dropout before them is off outside training."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def weight(self) -> Tensor:
        return self.model[1].weight[0]  # type: ignore[index, return-value]  # [C, 1, 1]


class LPIPS(nn.Module):
    """LPIPS on VGG16, v0.1 heads (Zhang et al. 2018), as LlamaGen and VA-π use it; tensor names are theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = _Scaling()
        self.net = nn.Module()
        channels = 3
        for number, convolutions in enumerate(VGG_SLICES, start=1):
            layers = nn.ModuleDict()
            for index, width in convolutions:
                layers[str(index)] = nn.Conv2d(channels, width, 3, padding=1)
                channels = width
            self.net.add_module(f"slice{number}", layers)
        for number, convolutions in enumerate(VGG_SLICES):
            self.add_module(f"lin{number}", _Head(convolutions[-1][1]))
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised VGG features [N, C, H, W] of images [N, 3, H, W] in [-1, 1], after relu1_2 ... relu5_3."""
        x, features = self.scaling_layer(images), []
        for number in range(1, len(VGG_SLICES) + 1):
            if number > 1:
                x = nn.functional.max_pool2d(x, 2)
            for convolution in getattr(self.net, f"slice{number}").values():
                x = convolution(x).relu()
            features.append(unit_normalize(x))
        return features

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """LPIPS [...] of features [..., C, H, W] whose leading dimensions broadcast; accumulated in float32."""
        heads = [getattr(self, f"lin{number}").weight() for number in range(len(VGG_SLICES))]
        slices = [
            ((x - y).float().square() * head.float()).sum(-3).mean((-1, -2))
            for x, y, head in zip(a, b, heads, strict=True)
        ]
        return torch.stack(slices).sum(0)


def load_lpips(folder: Path | str | None) -> LPIPS:
    """LPIPS with its published weights, from files that the user put there; nothing is downloaded.

    Args:
        folder: holds torchvision's VGG16 and the LPIPS heads; None: torch's cache of checkpoints.

    Raises:
        FileError: a file is missing, damaged, or not of this network.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints" if folder is None else Path(folder)
    for name in (VGG_FILE, HEADS_FILE):
        if not (folder / name).is_file():
            raise FileError(folder / name, "the weights of LPIPS are missing.", REMEDY)
    vgg, heads = read_state_dict(folder / VGG_FILE), read_state_dict(folder / HEADS_FILE)
    lpips = LPIPS()
    own = lpips.state_dict()
    state = {name: own[name] for name in own if name.startswith("scaling_layer.")} | heads
    for name in own:
        if name.startswith("net."):
            torchvision_name = "features." + name.split(".", 2)[2]
            if torchvision_name in vgg:
                state[name] = vgg[torchvision_name]
    load_strictly(lpips, state, folder)
    return lpips
