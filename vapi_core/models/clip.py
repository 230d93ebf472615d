"""CLIP models through open_clip, from a path or the hub's cache: GenEval's colors, the CLIP score and HPSv2 use them.

Everything runs in float32; the official scripts of GenEval and HPSv2 use automatic mixed precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from vapi_core.errors import FileError
from vapi_core.models.weights import check_expansion, check_loaded, weights_sha256

HUB_FILES = {  # where the weights of an architecture lie on the hub: repository, and files in order of preference
    "ViT-L-14-quickgelu": (
        "timm/vit_large_patch14_clip_224.openai",
        ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    ),
}
LOADING_ERRORS = (  # what open_clip, transformers and their file formats raise where a file is not what it should be
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    TypeError,
    UnpicklingError,
    SafetensorError,
)


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP model with its preprocessing."""

    name: str  # architecture or folder, and the beginning of the weights' sha256
    model: Any
    preprocess: Any  # PIL image -> [3, H, W]
    tokenizer: Any
    device: torch.device

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Images of any size -> unit vectors [N, D]."""
        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.device)
        with torch.inference_mode():
            return F.normalize(self.model.encode_image(pixels).float(), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts, cut off after the model's context -> unit vectors [N, D]."""
        with torch.inference_mode():
            return F.normalize(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)).float(), dim=-1)


def hub_file(repository: str, names: Sequence[str]) -> Path:
    """The first of some files of a hub repository that is in the local cache; nothing is downloaded.

    Raises:
        FileError: none is.
    """
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        if isinstance(path := try_to_load_from_cache(repository, name), str):
            return Path(path)
    raise FileError(
        repository,
        f"none of {', '.join(names)} is in the hub cache.",
        f"Run `hf download {repository} {names[0]}` where there is a network, or name a path.",
    )


def load_clip(
    architecture: str,
    weights: Path | str | None = None,
    device: torch.device | str = "cpu",
    resize_mode: str = "shortest",
) -> Clip:
    """A CLIP model.

    Args:
        architecture: open_clip's name. OpenAI's weights need the ones that end in "-quickgelu": open_clip 3 would load
            them into the others too, with another activation.
        weights: a checkpoint file of that architecture; or a folder with `open_clip_config.json` and weights, which
            says itself what it is; or None for the hub cache.
        resize_mode: "shortest" side to the input size, then the centre; or "longest", then padded.

    Raises:
        FileError: the weights are missing, damaged or of another architecture.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    path = hub_file(*HUB_FILES[architecture]) if weights is None else Path(weights)
    if not path.exists():
        raise FileError(path, f"the weights of {architecture} are missing.", "Name a checkpoint file or a folder.")
    name = f"local-dir:{path}" if path.is_dir() else architecture
    check_expansion(path)
    try:
        model = open_clip.create_model(
            name,
            None if path.is_dir() else str(path),
            device=device,
            require_pretrained=True,
            force_preprocess_cfg={"resize_mode": resize_mode},
        )
    except LOADING_ERRORS as error:
        problem = str(error).partition("\n")[0]
        raise FileError(path, f"open_clip cannot load {architecture} from it ({problem}).") from None
    check_loaded(model, path)
    model.eval().requires_grad_(False)
    label = path.name if path.is_dir() else architecture
    return Clip(
        f"{label} ({weights_sha256(model)[:12]})",
        model,
        image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False),
        open_clip.get_tokenizer(name),
        torch.device(device),
    )
