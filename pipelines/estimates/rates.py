"""How fast machines work: rates that were measured, or given by a maker and not reached in practice.

An operation takes its overhead and, after that, as long as the slower of its arithmetic and its memory traffic (the
roofline model: Williams et al. 2009, doi:10.1145/1498765.1498785).
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipelines.estimates.work import Work, measure

GIGA, TERA = 1e9, 1e12
SIZE = 1024  # of the matrices that are multiplied to measure
ELEMENTS = 2**20  # of the tensors that are added up: 4 MiB, as feature maps have
REPEATS = 30


@dataclass(frozen=True)
class Rates:
    """What a machine can do. FLOP/s and bytes/s are those that are reached, not the most that a data sheet promises."""

    name: str
    origin: str  # how they are known
    flops: dict[str, float]  # FLOP/s by dtype; "convolutions": of networks of images in float32
    bandwidth: float  # bytes/s of the memory beside the processor
    overhead: float  # seconds of one operation, whatever its size
    host_flops: float  # FLOP/s of the CPU, which scores
    host_bandwidth: float
    storage: float  # bytes/s of what is written, read and hashed
    photograph: float  # seconds until a photograph is read, cropped and resized
    memory: float | None = None  # bytes of a GPU; None: of the main memory
    threads: int = 1  # of a CPU, with which these were measured
    alone: float | None = None  # `overhead` of a single thread, which need not wait for others

    def seconds(self, work: Work, kind: str) -> float:
        """Time of work of a dtype or of convolutions. Tensors are counted in float32; in bfloat16 they are half."""
        bandwidth = self.bandwidth * (2 if kind == "bfloat16" else 1)
        return _seconds(work, self.flops[kind], bandwidth, self.overhead)

    def with_threads(self, threads: int | None) -> "Rates":
        """A CPU's rates with fewer threads; a GPU's as they are. Arithmetic takes as much longer."""
        if self.alone is None or threads is None or threads >= self.threads:
            return self
        slower = threads / self.threads
        flops = {kind: rate * slower for kind, rate in self.flops.items()}
        return replace(self, flops=flops, threads=threads, overhead=self.alone if threads == 1 else self.overhead)

    def without_calls(self) -> "Rates":
        """Where operations are compiled into few: their overhead is not worth counting."""
        return replace(self, overhead=0.0)

    def host_seconds(self, work: Work) -> float:
        """Time of work that is numpy's, on the CPU."""
        return _seconds(work, self.host_flops, self.host_bandwidth, 0.0)


def _seconds(work: Work, flops: float, bandwidth: float, overhead: float) -> float:
    return sum(
        count * (overhead + max(amount / flops, size / bandwidth)) for (amount, size), count in work.operations.items()
    )


# TFLOP/s in bfloat16, in TF32 and in float32, TB/s and GB of makers' data sheets (dense, without sparsity), times what
# trainings usually reach of them. PyTorch computes convolutions of float32 in TF32, and matrix products do not. None of
# these was measured here.
UTILISATION, BANDWIDTH_SHARE = 0.4, 0.7
CALL = 6e-6  # seconds that PyTorch takes to start a kernel


def _gpu(name: str, bfloat16: float, tf32: float, float32: float, bandwidth: float, memory: float) -> Rates:
    return Rates(
        name=name,
        origin=f"not measured: data sheet times {UTILISATION} (arithmetic) and {BANDWIDTH_SHARE} (memory)",
        flops={
            name: most * TERA * UTILISATION
            for name, most in (("bfloat16", bfloat16), ("convolutions", tf32), ("float32", float32))
        },
        bandwidth=bandwidth * TERA * BANDWIDTH_SHARE,
        overhead=CALL,
        host_flops=0.5 * TERA,
        host_bandwidth=50 * GIGA,
        storage=0.5 * GIGA,
        photograph=0.015,
        memory=memory * GIGA,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h100", 989, 494, 67, 3.35, 80),
        _gpu("h200", 989, 494, 67, 4.8, 141),
        _gpu("a100", 312, 156, 19.5, 2.04, 80),
        _gpu("4090", 165, 82.6, 82.6, 1.01, 24),
    )
}
# fitted to what the stages of the default profile measured of themselves: docs/estimate.md
EPYC = Rates(
    name="cpu",
    origin="two cores of an AMD EPYC, fitted to what stages measured there",
    flops={"float32": 100 * GIGA, "convolutions": 100 * GIGA, "bfloat16": 100 * GIGA},
    bandwidth=15 * GIGA,
    overhead=32e-6,
    host_flops=60 * GIGA,
    host_bandwidth=6 * GIGA,
    storage=0.5 * GIGA,
    photograph=0.015,
    threads=2,
    alone=6e-6,
)


def here() -> Rates | None:
    """The rates of this machine, None of a GPU that is not known; for a CPU those of the EPYC."""
    import torch

    if not torch.cuda.is_available():
        return EPYC
    name = torch.cuda.get_device_name().lower()
    return next((rates for key, rates in GPUS.items() if key in name), None)


def measure_cpu(threads: int = 0) -> Rates:
    """The rates of this machine's CPU, in about ten seconds.

    A matrix product tells the arithmetic, a sum of tensors as large as feature maps the memory, and the backward and
    forward of a transformer of no size what an operation takes beside both.

    Args:
        threads: of torch; 0: all cores.
    """
    import torch

    before, threads = torch.get_num_threads(), threads or os.cpu_count() or 1
    try:
        torch.set_num_threads(threads)
        a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
        large, other, out = (torch.randn(ELEMENTS) for _ in range(3))
        product, half = _shortest(lambda: a @ b), _shortest(lambda: a.bfloat16() @ b.bfloat16())
        total, call = _shortest(lambda: torch.add(large, other, out=out)), _call()
        torch.set_num_threads(1)
        alone = _call()
    finally:
        torch.set_num_threads(before)
    work, traffic = 2 * SIZE**3, 3 * 4 * ELEMENTS
    return replace(
        EPYC,
        origin=f"measured on this machine just now, with {threads} threads",
        flops={"float32": work / product, "convolutions": work / product, "bfloat16": work / half},
        bandwidth=traffic / total,
        overhead=call,
        alone=alone,
        threads=threads,
        host_flops=work / product,
    )


def _call() -> float:
    """Seconds of an operation of a transformer that has next to nothing to compute, forward and backward."""
    import torch

    from vapi_core.models.llamagen.generator import Generator, GeneratorConfig

    policy = Generator(GeneratorConfig(dim=16, layers=4, heads=2, multiple_of=16, grid=2, codebook_size=16, classes=2))
    condition, prefix = torch.zeros(1, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)

    def step() -> torch.Tensor:
        return policy(condition, prefix).sum()

    operations = measure(step).count
    return _shortest(lambda: step().backward()) / operations


def _shortest(run: Callable[[], object]) -> float:
    """Seconds of the quickest of some runs: the one that others on the machine have disturbed least."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)
