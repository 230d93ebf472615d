"""Several processes at one task: who does what, what they tell each other, and the files that they write together.

Everything works in a single process too, where nothing is sent. `torchrun` starts the processes, one per GPU (NCCL) or,
without GPUs, any number of CPU processes (gloo). No result depends on who computes it: random numbers come from streams
of positions and indices (`vapi_core.randomness`). More processes round otherwise, which over many steps is another
draw.

FSDP2 takes seconds to import, which only those who use it should wait for: hence the imports inside functions.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vapi_core.errors import ParameterError
from vapi_core.files import atomic_path

LONGEST_WAIT = timedelta(hours=6)  # for the slowest process; of one that died torchrun ends the others at once

Part = TypeVar("Part", range, list, np.ndarray)


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def start(device: torch.device) -> torch.device:
    """Joins the group of the processes that torchrun started; returns this process's own device, e.g. "cuda:3".

    Raises:
        ParameterError: there are more processes than GPUs.
    """
    if device.type == "cuda":
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise ParameterError("launch.processes", f"more than the {torch.cuda.device_count()} GPUs of this machine.")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    return device


def stop() -> None:
    """Leaves the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that tracks, shows progress and writes what needs one writer."""
    return rank() == 0


def barrier() -> None:
    """Waits until every process is here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))  # not dist.barrier, which would hold a GPU


def share(items: Part) -> Part:
    """The contiguous part of `items` that is this process's; the parts' lengths differ by one at most."""
    return items[share_start(len(items)) : share_start(len(items), rank() + 1)]


def share_start(count: int, number: int | None = None) -> int:
    """First of `count` items that belongs to a process, by default to this one."""
    return count * (rank() if number is None else number) // world_size()


def total(values: dict[str, Tensor]) -> dict[str, float]:
    """Sums of scalars over all processes, which must name the same ones in the same order."""
    device = next(iter(values.values())).device
    vector = torch.stack([value.detach().to(device, torch.float64) for value in values.values()]).cpu()
    if world_size() > 1:
        dist.all_reduce(vector)
    return dict(zip(values, vector.tolist(), strict=True))


def from_main(value: float) -> float:
    """What the main process has for `value`."""
    if world_size() == 1:
        return value
    message = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(message, 0)
    return message.item()


# Weights


def shard_weights(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Spreads a module's weights over all processes (FSDP2); a layer is put together only while it computes.

    A layer is a member of any `nn.ModuleList` in it. Give a module on the CPU: layer by layer goes to `device`, so that
    the whole never has to fit there. Weights stay in their precision, what is put together is in `dtype`, and gradients
    are summed in float32. Only `forward` of such a module works, not the steps of a generator through its cache.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    name = type(module).__name__
    mesh = init_device_mesh(device.type, (world_size(),))
    # inputs are left alone: rotary tables stay float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    layers = [layer for part in module.modules() if isinstance(part, nn.ModuleList) for layer in part]
    for part in (*layers, module):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    type(module).__name__ = name  # it has a class of its own now, and files say by that name what they hold


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard_weights` has spread a module's weights over the processes."""
    if not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def whole_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module that may be spread over processes; then on the CPU, for the main process alone."""
    if not is_sharded(module):
        return module.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return cast(dict[str, Tensor], state)


# Files


@contextmanager
def shared_path(path: Path | str) -> Iterator[Path]:
    """`vapi_core.files.atomic_path` for all processes: yields a temporary path, renamed when all have left it."""
    names: list[str | None] = [None]
    if is_main():
        with atomic_path(path) as temporary:
            names = [str(temporary)]
            if world_size() > 1:
                dist.broadcast_object_list(names, 0)
            yield temporary
            barrier()
    else:
        dist.broadcast_object_list(names, 0)
        assert names[0] is not None
        yield Path(names[0])
        barrier()
    barrier()  # nobody goes on before the file has its name


def create_array(path: Path, shape: tuple[int, ...], dtype: type[np.number]) -> None:
    """A .npy file of zeros that processes fill with `write_rows`, as `np.save` would write it. Main process only."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


def write_rows(path: Path, start: int, rows: np.ndarray) -> None:
    """Puts rows [n, ...] at rows start..start+n of a file that `create_array` made.

    No memory map: its pages count as memory of the process, and a full disk would kill the process with SIGBUS.
    """
    with open(path, "r+b") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        assert (rows.dtype, rows.shape[1:]) == (dtype, shape[1:]), f"{rows.dtype} {rows.shape} into {dtype} {shape}"
        assert start >= 0 and start + len(rows) <= shape[0], f"rows {start}..{start + len(rows)} of {shape[0]}"
        file.seek(start * rows.nbytes // max(len(rows), 1), os.SEEK_CUR)
        file.write(np.ascontiguousarray(rows).data)
