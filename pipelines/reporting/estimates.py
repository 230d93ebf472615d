"""Estimates as tables for people."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipelines.config.params import Params
from pipelines.config.variant import EXPERIMENT
from pipelines.estimates.estimate import Row
from pipelines.estimates.rates import Rates
from pipelines.reporting.markdown import markdown_table
from vapi_core.files import read_json

UNITS = (("d", 86400), ("h", 3600), ("min", 60))


def duration(seconds: float) -> str:
    """1.5 h, 12 min, 8 s."""
    unit, size = next(((unit, size) for unit, size in UNITS if seconds >= 2 * size), ("s", 1))
    return f"{seconds / size:.3g} {unit}" if seconds >= 1 else f"{seconds:.1f} s"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e7 else ("" if size == 0 else "<0.01 GB")


def page(
    params: Params, rows: Sequence[Row], rates: Rates, copies: bool, peaks: Mapping[str, float] | None = None
) -> str:
    """What a profile needs: a line for each stage, then the totals.

    Args:
        copies: whether DVC keeps a second copy of every output.
        peaks: bytes of memory by stage, as far as they are known.
    """
    launch, tables = params.launch, dict.fromkeys(row.table for row in rows)
    devices = f"{launch.processes} x {rates.name}" if launch.processes > 1 else rates.name
    lines = [
        f"Profile {params.profile} on {devices}, {launch.dtype}. Rates: {rates.origin}.",
        "",
        markdown_table(HEADER, [_line(row, (peaks or {}).get(row.stage, 0.0)) for row in rows]),
        "",
        *(f"table {name}: {duration(total(rows, name))}" for name in tables if name != EXPERIMENT),
        f"the experiment alone: {duration(total(rows, EXPERIMENT))}",
        f"all: {duration(sum(row.seconds for row in rows))}, one stage after the other",
        "",
        disk_text(rows, copies),
    ]
    return "\n".join(lines)


HEADER = ("stage", "time", "TFLOP", "peak of tensors", "output", "states while it runs")


def _line(row: Row, peak: float) -> list[str]:
    flops = f"{row.flops / 1e12:.3g}" if row.flops else ""
    sizes = map(gigabytes, (peak, row.disk.output, row.disk.working))
    return [row.stage, duration(row.seconds), flops, *sizes]


def total(rows: Iterable[Row], table: str) -> float:
    """Seconds of the stages that are for one table."""
    return sum(row.seconds for row in rows if row.table == table)


def disk_text(rows: Sequence[Row], copies: bool) -> str:
    """What lies on the disk in the end, and what comes on top of it for a while."""
    output, kept = (sum(getattr(row.disk, name) for row in rows) for name in ("output", "kept"))
    second = "a second copy in DVC's cache (docs/estimate.md says how to do without)"
    parts = [f"outputs {gigabytes(output)}", f"features in the work folder {gigabytes(kept)}"]
    parts += [f"{second} {gigabytes(output)}"] if copies else []
    whole = disk_bytes(rows, copies)
    return f"disk: {gigabytes(whole)}, of which {', '.join(parts)}, and resumable states for a while. Assets are not counted."


def disk_bytes(rows: Sequence[Row], copies: bool) -> float:
    """The most that lies on the disk at a time, without assets."""
    lasting = sum(row.disk.output * (2 if copies else 1) + row.disk.kept for row in rows)
    return lasting + max(row.disk.working for row in rows)


def comparison(rows: Sequence[Row], folder: Path) -> str:
    """Estimates beside the seconds that the stages measured of themselves, as far as they are in a folder."""
    pairs = [
        (row, float(read_json(path)["seconds"])) for row in rows if (path := folder / f"{row.stage}.json").is_file()
    ]
    lines = [[row.stage, f"{row.seconds:.1f}", f"{took:.1f}", f"{row.seconds / took:.2f}"] for row, took in pairs]
    kinds: dict[str, list[float]] = {}
    for row, took in pairs:
        sums = kinds.setdefault(row.kind, [0.0, 0.0])
        sums[0], sums[1] = sums[0] + row.seconds, sums[1] + took
    kinds["all"] = [sum(sums[i] for sums in kinds.values()) for i in (0, 1)]
    whole = [[f"all of {kind}", f"{a:.0f}", f"{b:.0f}", f"{a / b:.2f}"] for kind, (a, b) in kinds.items()]
    return markdown_table(("stage", "estimated, s", "measured, s", "ratio"), lines + whole)


def sweep_line(seconds: Sequence[float], parallelism: int, rates: Rates) -> str:
    """How long the cells of a sweep take, so many at a time."""
    whole = sum(seconds) / min(parallelism, len(seconds))
    each = duration(sum(seconds) / len(seconds))
    at_once = f", {parallelism} at a time without slowing each other" if parallelism > 1 else ""
    return f"about {duration(whole)} beside what the cells share: {len(seconds)} x {each}{at_once} ({rates.name}: {rates.origin})"
