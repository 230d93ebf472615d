"""Linear layers with packed weights, for drawing few images at a time on a CPU.

A decode step of few sequences multiplies few rows by every weight, and takes as long as it takes to read the weights.
`F.linear` reads them at a third of the memory's rate then. oneDNN reads weights that lie in its own order up to four
times as fast; results agree up to rounding (`docs/speed.md`). Packing a weight costs about five decode steps, so it is
done once a batch of images, and the packed copies are dropped behind it: they take the memory of the weights once more.
Where that is more than a quarter of what is free, all layers stay as they are.

The operators are those that PyTorch's compiler puts in the place of linear layers. They are not in its documented
interface: where they are missing, all layers stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vapi_core.memory import free_bytes
from vapi_core.models.policy import compute_dtype

LEAST_WIDTH = 512  # narrower weights stay in the CPU's caches: at 128 channels packed ones take longer
MOST_ROWS = 64  # with more, a product's arithmetic takes longer than reading its weight
FAST_ROWS = 4  # oneDNN takes longer for fewer rows than for four
FREE_SHARE = 0.25  # of the free memory: the batch has half of it


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch on this CPU multiplies by packed weights of a type."""
    operators = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not (torch.backends.mkldnn.is_available() and all(hasattr(operators, name) for name in names)):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())


def is_packable(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is a wide plain one on a CPU; weights that FSDP has cut are of another type, and stay."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.device.type == "cpu"
        and min(layer.weight.shape) >= LEAST_WIDTH
        and compute_dtype(layer.weight) == layer.weight.dtype
        and can_pack(layer.weight.dtype)
    )


class PackedLinear:
    """The forward of a linear layer by a packed copy of its weight."""

    def __init__(self, layer: nn.Linear):
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), FAST_ROWS)
        self._bias = layer.bias

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        count = len(rows)
        rows = F.pad(rows, (0, 0, 0, max(0, FAST_ROWS - count)))
        products = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
        return products[:count].unflatten(0, x.shape[:-1])


def packable_layers(model: nn.Module, rows: int) -> list[nn.Linear]:
    """The layers of a model that multiply so many rows faster by a packed weight, if memory holds all of these."""
    layers = [layer for layer in model.modules() if is_packable(layer)] if rows <= MOST_ROWS else []
    size = sum(layer.weight.nbytes for layer in layers)
    return layers if layers and size <= FREE_SHARE * free_bytes(layers[0].weight.device) else []


@contextmanager
def packed_linears(model: nn.Module, rows: int) -> Iterator[None]:
    """Within, the model's packable layers multiply by packed weights.

    No gradient passes through them, and weights must not change.
    """
    layers = packable_layers(model, rows)
    for layer in layers:
        layer.forward = PackedLinear(layer)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
