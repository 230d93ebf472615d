"""Hands results to other people's scripts: `vapi export`.

Weights go to an official `.pt` of LlamaGen, {"model": state dict}, for its own sampling and training scripts; a sampled
set goes to the `.npz` of ADM's evaluator, arr_0 uint8 [N, H, W, 3], or to a folder in GenEval's layout.
"""

from pathlib import Path

import numpy as np

from pipelines.frame.inputs import open_samples
from vapi_core.errors import FileError
from vapi_core.files import atomic_path
from vapi_core.models.checkpoints import load_model
from vapi_core.models.llamagen.checkpoints import export_official
from vapi_core.models.llamagen.generator import Generator
from vapi_core.models.llamagen.tokenizer import Tokenizer


def export_weights(directory: Path, path: Path) -> None:
    """Writes the model of a stage's output, e.g. data/aligned/va-pi/0, as an official `.pt`.

    Raises:
        FileError: there is no model, it is damaged, or it is not LlamaGen's.
    """
    _refuse_place(path)
    kinds = [kind for kind in ("generator", "tokenizer") if (directory / f"{kind}.json").is_file()]
    if not kinds:
        raise FileError(directory, "there is no model in it.", "Name a folder such as data/aligned/va-pi/0.")
    model = load_model(directory, kinds[0])
    if not isinstance(model, Generator | Tokenizer):
        raise FileError(directory, f"a {type(model).__name__} has no official LlamaGen format.")
    export_official(path, model)
    _tell(path)


def export_images(directory: Path, path: Path) -> None:
    """Writes the images of a sampled set, e.g. data/samples/experiment/va-pi/t1.0-g1.0-0, as ADM's `.npz`; images are
    not held.

    Raises:
        FileError: there is no such set, or it is damaged.
    """
    _refuse_place(path)
    images, _ = open_samples(
        directory, "Name the folder of one set, e.g. data/samples/experiment/base/t1.0-g1.0-0, or make it anew."
    )
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, arr_0=images)
    _tell(path)


def _refuse_place(path: Path) -> None:
    """Raises FileError where no file can be written; a folder that is not there is a misspelt one."""
    if not path.parent.is_dir():
        raise FileError(path, f"there is no folder {path.parent}.", "Make it first, or name another place.")
    if path.is_dir():
        raise FileError(path, "this is a folder.", "Name the file to write.")


def _tell(path: Path) -> None:
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
