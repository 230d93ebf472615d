"""Perceptual distances for the reward: LPIPS-VGG16, and the same formula over a small classifier of the user's own
data.

A distance is taken between features, so that the features of a reference image are computed once and serve all rollouts
of its group. Both networks are frozen, let gradients through to the images, and may be cast to bfloat16 with `.to()`:
their features then are bfloat16, norms and distances float32.

Departure from the paper: its λ_p term is LPIPS, whose weights come from the web. The default profile, which downloads
nothing, puts a digit classifier trained in the DAG in VGG's place. That has no learned heads, so every channel weighs
the same, and its stages are averaged where LPIPS adds them up.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from vapi_core.errors import FileError
from vapi_core.models.weights import check_finite, misfits, read_state_dict

# torchvision's vgg16 `features`: index of the layer and its output channels; ReLUs and poolings carry no weights
VGG_SLICES: tuple[tuple[tuple[int, int], ...], ...] = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of LPIPS v0.1, for images in [-1, 1]
VGG_FILE = "vgg16-397923af.pth"
HEADS_FILES = ("vgg.pth", "weights-vgg16-lpips.pth")  # the same five tensors: LPIPS v0.1's file, torch-fidelity's copy
REMEDY = (
    f"LPIPS needs torchvision's {VGG_FILE} and its v0.1 heads, {HEADS_FILES[0]} of the package `lpips` or "
    f"torch-fidelity's {HEADS_FILES[1]}. Put both into one folder and name it as align.lpips_checkpoint; or, with web "
    "access, let torch-fidelity fetch them into torch's cache: "
    "python -c \"from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS as S; S('lpips-vgg16')\""
)


def unit_normalize(features: Tensor) -> Tensor:
    """Divides features [..., C, H, W] by their norm over channels; 1e-10 is added after the root, as in LPIPS.

    Where all channels are 0 the gradient is not finite. Behind a ReLU, which passes nothing back there, that is
    harmless.
    """
    wide = features.float()
    return (wide / (wide.square().sum(-3, keepdim=True).sqrt() + 1e-10)).to(features.dtype)


def _squared_differences(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Float32 [..., C, H, W] per stage; one operand is cast, to which the other is promoted without a copy."""
    return [(x - y.float()).square() for x, y in zip(a, b, strict=True)]


class FeatureDistance(nn.Module):
    """Per stage squared differences of unit-normalised features, summed over channels; mean over space, then stages."""

    def __init__(self, network: nn.Module, first_stage: int = 0):
        """`network` has a method `stages`: images [N, 3, H, W] in [-1, 1] to a list of feature maps behind ReLUs.

        The stages before `first_stage` take no part.
        """
        super().__init__()
        self.network, self.first_stage = network, first_stage
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised feature maps [N, C, H, W] of each stage."""
        images = images.to(next(self.network.parameters()).dtype)
        maps = self.network.stages(images)  # type: ignore[operator]
        return [unit_normalize(f) for f in maps[self.first_stage :]]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distances [...], float32, of features [..., C, H, W] whose leading dimensions broadcast."""
        return torch.stack([d.sum(-3).mean((-1, -2)) for d in _squared_differences(a, b)]).mean(0)

    def maps(self, a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        """Error maps [..., H, W], float32, of each stage; the sum of their means is the distance."""
        return [d.sum(-3) / len(a) for d in _squared_differences(a, b)]


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
        return self.model[1].weight.flatten()  # type: ignore[operator, union-attr]  # [C]


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
        dtype = next(self.net.parameters()).dtype
        x, features = self.scaling_layer(images).to(dtype), []
        for number in range(1, len(VGG_SLICES) + 1):
            if number > 1:
                x = nn.functional.max_pool2d(x, 2)
            for convolution in getattr(self.net, f"slice{number}").values():
                x = convolution(x).relu()
            features.append(unit_normalize(x))
        return features

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """LPIPS [...], float32, of features [..., C, H, W] whose leading dimensions broadcast."""
        slices = []
        for number, difference in enumerate(_squared_differences(a, b)):
            # space before channels: the heads are linear, and so weigh C numbers an image instead of C * H * W;
            # no matrix product, which autocast would round to bfloat16
            weights = getattr(self, f"lin{number}").weight().float()  # [C]
            slices.append((difference.mean((-1, -2)) * weights).sum(-1))
        return torch.stack(slices).sum(0)

    def maps(self, a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        """Error maps [..., H, W], float32, of each slice; the sum of their means is LPIPS."""
        maps = []
        for number, difference in enumerate(_squared_differences(a, b)):
            weights = getattr(self, f"lin{number}").weight().float()  # [C]
            maps.append(difference.mul_(weights[:, None, None]).sum(-3))  # in place: nothing larger is held than above
        return maps


def load_lpips(path: Path | str | None) -> LPIPS:
    """LPIPS with its published weights, from files that the user put there; nothing is downloaded.

    Args:
        path: a folder with torchvision's VGG16 and the LPIPS heads, or one file with LPIPS's whole state dict; None:
            torch's cache of checkpoints.

    Raises:
        FileError: a file is missing, damaged, or not of this network; names the file, the tensor and the source.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" if path is None else Path(path)
    lpips = LPIPS()
    own = lpips.state_dict()
    if path.is_file():
        state = _read_tensors(path, {name: name for name in own}, own)
    else:
        vgg = {name: f"features.{name.split('.', 2)[2]}" for name in own if name.startswith("net.")}
        heads = {name: name for name in own if name.startswith("lin")}
        vgg_path, heads_path = _find(path, VGG_FILE), _find(path, *HEADS_FILES)
        state = {name: own[name] for name in own if name.startswith("scaling_layer.")}
        state |= _read_tensors(vgg_path, vgg, own) | _read_tensors(heads_path, heads, own)
    lpips.load_state_dict(state)
    return lpips


def _find(folder: Path, *names: str) -> Path:
    """The first of these files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if not folder.exists():
        raise FileError(folder, "there is no such file or folder.", REMEDY)
    raise FileError(folder / names[0], "the weights of LPIPS are missing.", REMEDY)


def _read_tensors(path: Path, names: dict[str, str], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file under our names. `names` maps ours to the file's, which must be all it holds but a classifier.

    Messages use the file's names, which a user finds in it; torchvision's file has the classifier that LPIPS cuts off.
    """
    state = read_state_dict(path, REMEDY)
    problems = [f"{theirs} is missing" for theirs in names.values() if theirs not in state]
    problems += misfits({theirs: own[name] for name, theirs in names.items()}, state)
    expected = set(names.values())
    problems += [f"{n} is unexpected" for n in state if n not in expected and not n.startswith("classifier.")]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise FileError(path, "the weights do not fit LPIPS: " + "; ".join(problems[:3]) + more + ".", REMEDY)
    check_finite({theirs: (state[theirs], own[name].dtype) for name, theirs in names.items()}, path, REMEDY)
    return {name: state[theirs] for name, theirs in names.items()}
