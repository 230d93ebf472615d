"""Weights as they come from files: read without running code, and refused where they are not what a model can hold.

PyTorch would cast whole numbers to floats, copy NaN, and unpack an archive of any size. What is checked of the weights
of every model stands here, whoever reads the file: `read_state_dict` and `load_strictly`, or transformers and open_clip
between `check_expansion` and `check_loaded`.
"""

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vapi_core.errors import FileError

WRAPPERS = ("model", "module", "state_dict")  # DDP training, DeepSpeed, Lightning; the first that is there is unwrapped
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
EXPANSION = 2  # times its size to which an archive may expand; torch.save compresses nothing, TorchScript its code


def read_state_dict(path: Path, remedy: str = "") -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a `.pt` file, unwrapped; never runs code from the file.

    Raises:
        FileError: the file is missing, truncated, would execute code or expand beyond its size, or holds no state dict
            of plain tensors.
    """
    if not path.is_file():
        raise FileError(path, "the file is missing.", remedy)
    check_expansion(path, remedy)
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        problem = (
            f"the file holds more than tensors ({refused[1]}), which could run code, and was not loaded."
            if refused
            else "the file is damaged, or torch.save did not write it."
        )
        raise FileError(path, problem, remedy) from None
    except Exception as error:  # a damaged pickle ends in nearly any error: KeyError, EOFError, AssertionError, ...
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise FileError(path, "it asks for more memory than there is; perhaps it is damaged.", remedy) from None
        raise FileError(path, f"the file is damaged or truncated ({type(error).__name__}: {error}).", remedy) from None
    content = _unwrapped(content)
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = list(content)[:5] if isinstance(content, dict) else type(content).__name__
        raise FileError(path, f"no state dict here, nor under {', '.join(WRAPPERS)}; found {found}.", remedy)
    unusable = [_unusable(name, tensor) for name, tensor in content.items()]
    if problems := [problem for problem in unusable if problem is not None]:
        raise FileError(path, f"the weights cannot be used: {_first(problems)}.", remedy)
    return content


def _unpickle(path: Path, mmap: bool = False) -> Any:
    # official training checkpoints hold the command line's arguments beside the weights: plain data in a Namespace
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, "cpu", weights_only=True, mmap=mmap)


def _unwrapped(content: Any) -> Any:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            return content[wrapper]
    return content


def _unusable(name: Any, tensor: Tensor) -> str | None:
    """What is wrong with a tensor whatever the model."""
    if not isinstance(name, str):
        return f"{name!r} is not the name of a tensor"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"{name} is sparse or nested"
    if tensor.is_quantized:
        return f"{name} is quantized"
    return f"{name} has a shape and no values" if tensor.is_meta else None


def check_expansion(path: Path, remedy: str = "") -> None:
    """Looks at the directory of a zip archive, or at those of all weights in a folder, before anything is unpacked.

    Raises:
        FileError: an archive would expand to more than EXPANSION times its size.
    """
    for file in weight_files(path):
        try:
            with zipfile.ZipFile(file) as archive:
                expanded = sum(info.file_size for info in archive.infolist())
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            continue  # no archive, or one that its reader refuses
        size = file.stat().st_size
        if expanded > EXPANSION * size:
            problem = f"the archive of {size} bytes would expand to {expanded}, and was not loaded."
            raise FileError(file, problem, remedy)


def weight_files(path: Path) -> list[Path]:
    """The file, or the files of weights in a folder."""
    return sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: Path, remedy: str = "") -> None:
    """Copies `state` into `model`; every tensor must be there, with its shape and finite numbers, and no other.

    Precisions may differ; other types are not cast.

    Raises:
        FileError: names the file and the tensors.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unexpected" for name in state if name not in own]
    problems += misfits(own, state)
    if problems:
        raise FileError(path, f"the weights do not fit the model: {_first(problems)}.", remedy)
    check_finite({name: (tensor, own[name].dtype) for name, tensor in state.items()}, path, remedy)
    model.load_state_dict(state)


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Of the tensors that are in both, those of another shape, or of a type that would have to be cast."""
    both = [(name, wanted, state[name]) for name, wanted in own.items() if name in state]
    problems = [
        f"{name} has shape {list(given.shape)}, not {list(wanted.shape)}"
        for name, wanted, given in both
        if given.shape != wanted.shape
    ]
    return problems + [
        f"{name} has dtype {_dtype(given)}, not {_dtype(wanted)}"
        for name, wanted, given in both
        if given.dtype != wanted.dtype and not {given.dtype, wanted.dtype} <= set(FLOATS)
    ]


def check_finite(state: Mapping[str, tuple[Tensor, torch.dtype]], path: Path, remedy: str = "") -> None:
    """
    Args:
        state: tensors by name, each with the type in which its numbers must be finite.

    Raises:
        FileError: names the file and the tensors that hold NaN, or numbers that are infinite or become so.
    """
    names = [name for name, (tensor, dtype) in state.items() if not is_finite(tensor, dtype)]
    if names:
        raise FileError(path, f"the weights are not finite numbers: {_first(names)}.", remedy)


def check_savable(state: Mapping[str, Tensor], path: Path) -> None:
    """`check_finite` for what is to be written to `path`."""
    check_finite({name: (tensor, tensor.dtype) for name, tensor in state.items()}, path, "They were not saved.")


def is_finite(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether all numbers of a tensor are finite, after a cast to `dtype` if it is given."""
    tensor = tensor.detach().to(dtype or tensor.dtype)
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(bool(bound.isfinite()) for bound in tensor.aminmax())  # NaN is both of its bounds


def check_loaded(model: nn.Module, path: Path) -> None:
    """Checks what a library has loaded into a model from a file or a folder, and that it cast nothing but precisions.

    Raises:
        FileError: a weight is not finite, or a weight or bias of the file is no floating-point number.
    """
    for file in weight_files(path):
        cast = [
            f"{name} has dtype {dtype}"
            for name, dtype in _dtypes(file)
            if name.endswith((".weight", ".bias")) and dtype not in map(_name, FLOATS)
        ]
        if cast:
            raise FileError(file, f"the weights are not floating-point numbers: {_first(cast)}.")
    check_finite({name: (tensor, tensor.dtype) for name, tensor in model.state_dict().items()}, path)


SAFETENSORS_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def _dtypes(file: Path) -> Iterable[tuple[str, str]]:
    """Names and types of a file's tensors, without reading them."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 it is no dict
                dtype = opened.get_slice(name).get_dtype()
                yield name, _name(SAFETENSORS_FLOATS[dtype]) if dtype in SAFETENSORS_FLOATS else dtype
        return
    content = _unwrapped(_unpickle(file, mmap=zipfile.is_zipfile(file)))
    if isinstance(content, dict):
        yield from ((str(name), _dtype(tensor)) for name, tensor in content.items() if isinstance(tensor, Tensor))


def _dtype(tensor: Tensor) -> str:
    return _name(tensor.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first(problems: list[str]) -> str:
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def weights_sha256(network: nn.Module) -> str:
    """Hex sha256 of a network's state dict: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
