"""What a profile needs on a machine: the time and the disk of every stage, and of all of them."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.config.params import Params
from pipelines.config.variant import EXPERIMENT, Variant, all_variants
from pipelines.estimates.costs import Cost, costs, costs_of
from pipelines.estimates.peaks import align_peak, is_computable, sample_peak
from pipelines.estimates.rates import Rates
from pipelines.estimates.sizes import Disk, disks, disks_of
from pipelines.estimates.trainings import alike

MAIN_MEMORY = 16e9  # bytes that a CPU is taken to have, where images are drawn as many at once as fit
START = 1.0  # seconds until a stage works: devices, models, the run; measured, see docs/estimate.md
PASSES = 3  # how often what a stage puts out is written, or read to be hashed
PER_CALL = 60.0  # seconds of torch.compile, once a stage


@dataclass(frozen=True)
class Row:
    """One stage."""

    stage: str  # as in dvc.yaml
    table: str  # that it is for: "experiment" for what all tables need
    seconds: float
    flops: float
    disk: Disk

    @property
    def kind(self) -> str:
        return self.stage.partition("@")[0].removesuffix("-control")


def estimate(params: Params, rates: Rates) -> list[Row]:
    """All stages in the order of the graph, one after the other on one machine."""
    by_name = {disk.stage: disk for disk in disks(params)}
    tables = {variant.name: variant.table for variant in all_variants(params)}
    rows = []
    for cost in costs(params, rates.memory or MAIN_MEMORY):
        disk = by_name.get(cost.stage, Disk(cost.stage, 0.0))
        kind, _, name = cost.stage.partition("@")
        table = name if kind == "table" else tables.get(name, EXPERIMENT)
        flops = cost.policy.flops + cost.images.flops + cost.host.flops
        rows.append(Row(cost.stage, table, seconds(cost, disk, params, rates), flops, disk))
    return rows


def seconds(cost: Cost, disk: Disk, params: Params, rates: Rates) -> float:
    """Time of a stage; processes that share its work are as many times as fast."""
    launch = params.launch
    rates = rates.with_threads(cost.threads or params.threads or None)
    compiled = launch.compile and cost.policy.count > 0
    own = rates.without_calls() if compiled else rates
    device = own.seconds(cost.policy, launch.dtype) + rates.seconds(cost.images, "convolutions")
    others = (
        rates.host_seconds(cost.host)
        + cost.photographs * rates.photograph
        + PASSES * (disk.output + disk.kept) / rates.storage
    )
    return START + cost.seconds + device / (launch.processes if cost.shared else 1) + others + PER_CALL * compiled


def memory_peaks(params: Params, memory: float | None) -> dict[str, float]:
    """Bytes of tensors at the fullest moment, of the stages that align and draw. Variants of the same work have one
    peak.

    Args:
        memory: bytes of the GPU; None: a CPU, on which how many images are drawn at once must stand in the params.
    """
    size = None if memory is None else int(memory)
    known: dict[object, float] = {}
    peaks: dict[str, float] = {}
    for variant in all_variants(params):
        if (alignment := variant.alignment) is not None and is_computable(params, variant.name):
            own = alignment.optimization
            key = (alike(alignment), own.batch_size, own.micro_batch_size)
            if key not in known:
                known[key] = align_peak(params, variant.name, size).total
            peaks[variant.stage("align")] = known[key]
        if size is not None or params.sample.batch_size is not None:
            guided = any(sampling.guidance_scale != 1.0 for sampling in variant.samplings)
            if guided not in known:
                known[guided] = sample_peak(params, variant.name, size).total
            peaks[variant.stage("sample")] = known[guided]
    return peaks


def sweep_seconds(params: Params, cells: Iterable[Variant], rates: Rates) -> list[float]:
    """Time of each cell: aligned with every seed, drawn and scored; what cells share is not in it."""
    memory = rates.memory or MAIN_MEMORY
    return [
        sum(
            seconds(cost, disk, params, rates)
            for cost, disk in zip(costs_of(params, cell, memory), disks_of(params, cell), strict=True)
        )
        for cell in cells
    ]
