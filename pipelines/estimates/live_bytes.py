"""The fullest moment of a computation: which bytes are held at once, and what holds them.

Works on real tensors and on fake ones, which have shapes and no content: then nothing is allocated. A storage counts
from the operation that makes it until nothing refers to it, which is what an allocator holds without its own rounding.
What libraries allocate inside an operation does not show.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while this mode is on, and those that it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, dict[str, int]] = {}  # bytes at the fullest moment of each phase, by label
        self._phase, self._label = "start", "activations"
        self._counted: dict[int, tuple[StorageWeakRef, str, int]] = {}  # by number: the storage, its label and bytes
        self._total = 0  # of these, of which some may be gone

    @property
    def held(self) -> dict[str, int]:
        """Bytes that are held now, by label."""
        held: dict[str, int] = {}
        self._total = 0
        for number, (storage, label, size) in list(self._counted.items()):
            if storage.expired():
                del self._counted[number]
            else:
                held[label] = held.get(label, 0) + size
                self._total += size
        return held

    def hold(self, label: str, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that are there already; those that are counted get this label."""
        for tensor in tensors:
            self._count(tensor, label)

    def begin(self, phase: str) -> None:
        """What comes from now on is a phase of its own."""
        self._phase = phase
        self.peaks[phase] = self.held

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """What operations in the block make is called so."""
        before, self._label = self._label, label
        try:
            yield
        finally:
            self._label = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and StorageWeakRef(tensor.untyped_storage()).cdata not in self._counted:
                self._count(tensor, self._label_of(func, args))
        return result

    def _label_of(self, func: Any, args: Any) -> str:
        """A weight in another type is a copy that autocast keeps for the rest of its block."""
        if func is torch.ops.aten._to_copy.default:
            _, label, _ = self._counted.get(StorageWeakRef(args[0].untyped_storage()).cdata, (None, "", 0))
            if label == "weights":
                return "weights in bfloat16"
        return self._label

    def _count(self, tensor: Tensor, label: str) -> None:
        """Looks at what is gone only where this could be the fullest moment: looking takes time."""
        storage = StorageWeakRef(tensor.untyped_storage())
        size = tensor.untyped_storage().nbytes()
        if storage.cdata not in self._counted:
            self._total += size
        self._counted[storage.cdata] = storage, label, size
        if self._total > self._most:
            held = self.held
            if self._total > self._most:
                self.peaks[self._phase] = held

    @property
    def _most(self) -> int:
        return sum(self.peaks.get(self._phase, {}).values())
