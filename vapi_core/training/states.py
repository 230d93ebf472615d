"""The resumable state of a training on disk, of which a damaged one costs some steps and no more.

A state is a folder named by the steps done: the tensors by torch.distributed.checkpoint, which puts them together for
any number of processes; history.json, the metrics of each step; training.json, the fingerprint of the run with size and
sha256 of every other file. They are checked before anything is read; a state that fails is set aside.

Disk: the state before is kept until the next but one is whole, so there are two, and three for a moment. In float32
each takes 12 bytes a parameter: 9.3 GB for the 775 million of LlamaGen-XL.
"""

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vapi_core.distributed import from_main, is_main, shared_path, world_size
from vapi_core.errors import FileError
from vapi_core.files import read_json, sha256_file, write_json

Metrics = dict[str, float]
TRAINING_FILE, HISTORY_FILE = "training.json", "history.json"
ASIDE = ".damaged"  # end of the name of a state that is set aside
ALONE = "torch.distributed is disabled"  # a warning of torch.distributed.checkpoint in a single process


class TrainingStates:
    """The states of one run in `folder`. What another run left there, by its fingerprint, is ignored, and removed by a
    save.

    Several processes call each method together. The main one looks at the files and decides for all.
    """

    def __init__(self, folder: Path, fingerprint: str):
        self.folder, self.fingerprint = folder, fingerprint
        self._latest = 0  # steps of the newest state of this run; 0: none

    def resume(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Metrics]:
        """Restores module and optimizer; returns the metrics of the steps done, none if there is nothing to resume."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        self._latest = int(from_main(self._newest() if is_main() else 0))
        if self._latest == 0:
            return []
        path = self.folder / str(self._latest)
        saved = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        for name, parameter in module.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                description = saved.get(f"optimizer.{key}.{name}")
                if isinstance(description, TensorStorageMetadata):
                    like_parameter = description.size == parameter.shape
                    optimizer.state[parameter][key] = (
                        torch.zeros_like(parameter) if like_parameter else parameter.new_zeros(description.size)
                    )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ALONE)
            dcp.load(_tensors(module, optimizer), checkpoint_id=path, no_dist=world_size() == 1)
        return read_json(path / HISTORY_FILE)

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, history: list[Metrics]) -> None:
        """Writes the state after `len(history)` steps, then removes all but this one and the one before."""
        import torch.distributed.checkpoint as dcp

        steps = len(history)
        with shared_path(self.folder / str(steps)) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", ALONE)
            dcp.save(_tensors(module, optimizer), checkpoint_id=temporary, no_dist=world_size() == 1)
            if is_main():
                write_json(temporary / HISTORY_FILE, history)
                files = {path.name: _facts(path) for path in sorted(temporary.iterdir())}
                write_json(temporary / TRAINING_FILE, {"fingerprint": self.fingerprint, "files": files})
        if is_main():
            for old in states(self.folder) - {steps, self._latest}:
                shutil.rmtree(self.folder / str(old))
        self._latest = steps

    def _newest(self) -> int:
        """Steps of the newest whole state of this run, 0 if there is none; sets aside those that are damaged."""
        for steps in sorted(states(self.folder), reverse=True):
            path = self.folder / str(steps)
            try:
                if is_whole(path, self.fingerprint):
                    return steps
            except FileError as error:
                aside = path.with_name(path.name + ASIDE)
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                print(
                    f"warning: {error} It is now {aside}; training goes on from the state before, or anew.",
                    file=sys.stderr,
                )
        return 0


def states(folder: Path) -> set[int]:
    """After how many steps there are states in a folder, whole or not."""
    return {int(path.name) for path in folder.glob("*") if path.name.isdecimal()}


def is_whole(path: Path, fingerprint: str) -> bool:
    """Whether a state is of this run; if it is, its files are read and compared with their sizes and hashes.

    Raises:
        FileError: names the file that is damaged or missing.
    """
    training = read_json(path / TRAINING_FILE)
    if not isinstance(training, dict) or not isinstance(files := training.get("files"), dict):
        raise FileError(path / TRAINING_FILE, "the file does not describe a training.")
    if training.get("fingerprint") != fingerprint:
        return False
    for name, facts in files.items():
        if not (path / name).is_file():
            raise FileError(path / name, "the file is missing.")
        if _facts(path / name) != facts:
            raise FileError(path / name, "the file is damaged: its bytes are not those that were written.")
    return True


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's are named by parameter; one that had no gradient yet has none."""
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    return tensors
