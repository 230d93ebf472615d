"""The parts, by their value to someone who has one hour of a GPU: a cut-off leaves the first of them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu import drawing, parity, recipe, resume, sampling, sharded, step
from benchmarks.gpu.process import Pieces, own_device
from benchmarks.gpu.shapes import Asked
from benchmarks.measure import machine, matmul_rate, memory_rate

XL, XXL = "llamagen-xl-c2i", "llamagen-xxl-c2i"


@dataclass(frozen=True)
class Part:
    """What is measured, and after how many minutes it is stopped."""

    name: str
    title: str
    minutes: float
    measure: Callable[[Asked], Pieces]


def measure_machine(asked: Asked) -> Pieces:
    device = own_device()
    facts = machine(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        facts |= {"gpus": torch.cuda.device_count(), "free_bytes": free, "total_bytes": total}
    yield {"machine": facts}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    yield {"matmul_flops_per_second": matmul_rate(device, dtype), "bytes_per_second": memory_rate(device)}


PARTS = (
    Part("machine", "The machine", 3, measure_machine),
    Part("step-xl", "One alignment step, LlamaGen-XL", 5, partial(step.measure, XL)),
    Part("sampling-xl", "Sampling, LlamaGen-XL", 5, partial(sampling.measure, XL)),
    Part("recipe-xxl", "The paper's recipe, LlamaGen-XXL", 6, partial(recipe.measure, XXL)),
    Part("parity", "The official numbers", 3, parity.measure),
    Part("step-xxl", "One alignment step, LlamaGen-XXL", 5, partial(step.measure, XXL)),
    Part("sampling-xxl", "Sampling, LlamaGen-XXL", 5, partial(sampling.measure, XXL)),
    Part("drawing-xl", "1,000 images, LlamaGen-XL", 5, partial(drawing.measure, XL)),
    Part("resume-xl", "A training that is killed and goes on, LlamaGen-XL", 4, partial(resume.measure, XL)),
    Part("fsdp-xl", "`strategy: fsdp`, LlamaGen-XL", 4, partial(sharded.measure, XL)),
)


def measure_part(name: str, asked: Asked) -> Pieces:
    """The results of a part, in its own process."""
    if own_device().type == "cpu":
        torch.set_num_threads(1)
        if asked.quick:  # traced, not compiled: a C++ compiler takes minutes
            torch.compile = functools.partial(torch.compile, backend="eager")
    (part,) = (part for part in PARTS if part.name == name)
    yield from part.measure(asked)
