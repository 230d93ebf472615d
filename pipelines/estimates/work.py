"""What a computation does, counted without doing it: its operations one by one, each with its FLOPs and bytes.

The computation runs on fake tensors, which have shapes and no content. So what is counted is the very code that a stage
runs, forward and backward, at its own sizes, in no memory.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# read no more of a table than they give
LOOK_UPS = (torch.ops.aten.embedding, torch.ops.aten.index, torch.ops.aten.gather, torch.ops.aten.index_select)

Operation = tuple[float, float]  # FLOPs (a multiply-add is 2), and bytes read and written


@dataclass(frozen=True)
class Work:
    """Operations, and how many there are of each."""

    operations: Mapping[Operation, float] = field(default_factory=dict)

    @property
    def flops(self) -> float:
        return sum(flops * count for (flops, _), count in self.operations.items())

    @property
    def bytes(self) -> float:
        return sum(size * count for (_, size), count in self.operations.items())

    @property
    def count(self) -> float:
        return sum(self.operations.values())

    def __add__(self, other: "Work") -> "Work":
        names = {**self.operations, **other.operations}
        return Work({name: self.operations.get(name, 0) + other.operations.get(name, 0) for name in names})

    def __mul__(self, times: float) -> "Work":
        return Work({name: count * times for name, count in self.operations.items()})


NOTHING = Work()


def operation(flops: float, size: float) -> Work:
    """One operation of so many FLOPs that moves so many bytes."""
    return Work({(flops, size): 1})


class _Recorder(TorchDispatchMode):
    """Counts as `torch.utils.flop_counter` does, with the bytes of every operation that moves any."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[Operation] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if packet not in flop_registry:
            with self:  # inference mode does not take composite operations apart by itself
                if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return result
        result = func(*args, **kwargs)
        if not func.is_view and packet is not torch.ops.aten._unsafe_view:  # which move nothing
            flops = flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0
            read = result if packet in LOOK_UPS else (args, kwargs)
            self.operations[flops, _size(read) + _size(result)] += 1
        return result


def _size(values: Any) -> int:
    """Bytes of all tensors among nested values."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, torch.Tensor))


def counted(computation: Callable[[], Any]) -> Work:
    """The work of a computation that makes its models and inputs itself; only `measure` inside it is counted."""
    with FakeTensorMode():
        work = computation()
    assert isinstance(work, Work)
    return work


def measure(step: Callable[[], Any]) -> Work:
    """The work of one step over fake tensors; with a backward where a loss comes out that needs one."""
    with _Recorder() as recorder:
        result = step()
        loss = result[0] if isinstance(result, tuple) else result
        if isinstance(loss, torch.Tensor) and loss.requires_grad and loss.ndim == 0:
            loss.backward()
    return Work(dict(recorder.operations))


def of_layers(count: Callable[[int], Work], layers: int) -> Work:
    """Work that grows by the same with every layer, from that of one and of two layers."""
    first = count(1)
    return first if layers == 1 else first + (count(2) + first * -1) * (layers - 1)
