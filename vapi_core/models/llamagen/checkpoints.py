"""LlamaGen's official `.pt` files, of tokenizer and generator.

A tokenizer's usage buffer must be there, as the official loader has it, while the KV cache that the official
`generate()` leaves in a state dict is no weight and is left out.
"""

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from vapi_core.files import atomic_path
from vapi_core.models.llamagen.generator import Generator
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.weights import load_strictly, read_state_dict

Model = TypeVar("Model", Tokenizer, Generator)


def import_official(path: Path | str, model: Model) -> Model:
    """Fills `model` from an official `.pt` file (bare or wrapped) or a safetensors file, strictly.

    Raises:
        FileError: names the file, and the first tensors that are missing, unexpected or of another shape.
    """
    path = Path(path)
    weights = {name: t for name, t in read_state_dict(path).items() if ".attention.kv_cache." not in name}
    load_strictly(model, weights, path)
    return model


def export_official(path: Path | str, model: nn.Module) -> None:
    """Writes the official `.pt` layout, {"model": state dict}, that LlamaGen's own scripts load."""
    # an open file, because torch.save writes the name of a path into the archive: the bytes would differ each time
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save({"model": {name: t.detach().cpu() for name, t in model.state_dict().items()}}, file)
