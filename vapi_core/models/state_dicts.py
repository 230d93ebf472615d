"""Weights of others: state dicts read from files without running code, and put into models strictly.

The official scripts load with strict=False, so that a wrong wrapper silently loads nothing (reference
`checkpoint_layouts/checkpoint_formats.json`). Here every tensor must be there, with its shape, and no other.
"""

import argparse
import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vapi_core.errors import FileError

WRAPPERS = ("model", "module", "state_dict")  # DDP training, DeepSpeed, Lightning; the first that is there is unwrapped


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a `.pt` file, unwrapped; never runs code from the file.

    Raises:
        FileError: the file is missing, truncated, would execute code, or holds no state dict.
    """
    if not path.is_file():
        raise FileError(path, "the file is missing.")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        problem = (
            f"the file holds more than tensors ({refused[1]}), which could run code, and was not loaded."
            if refused
            else "the file is damaged, or torch.save did not write it."
        )
        raise FileError(path, problem) from None
    except Exception as error:  # a damaged pickle ends in nearly any error: KeyError, EOFError, AssertionError, ...
        raise FileError(path, f"the file is damaged or truncated ({type(error).__name__}: {error}).") from None
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = list(content)[:5] if isinstance(content, dict) else type(content).__name__
        raise FileError(path, f"no state dict here, nor under {', '.join(WRAPPERS)}; found {found}.")
    return content


def _unpickle(path: Path) -> Any:
    # official training checkpoints hold the command line's arguments beside the weights: plain data in a Namespace
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, "cpu", weights_only=True)


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Copies `state` into `model`; every tensor must be there, with its shape, and no other.

    Raises:
        FileError: names the file and the tensors.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unexpected" for name in state if name not in own]
    problems += [
        f"{name} has shape {list(state[name].shape)}, not {list(t.shape)}"
        for name, t in own.items()
        if name in state and state[name].shape != t.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise FileError(path, "the weights do not fit the model: " + "; ".join(problems[:3]) + more + ".")
    model.load_state_dict(state)


def weights_sha256(network: nn.Module) -> str:
    """Hex sha256 of a network's state dict: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
