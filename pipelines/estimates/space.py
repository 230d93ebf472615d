"""Whether the disk holds what is to come: asked before any work, since a full disk ends a run after hours."""

import os
import shutil
from pathlib import Path

from pipelines.config.params import Params
from pipelines.config.paths import WORK
from pipelines.config.variant import EXPERIMENT, all_variants
from pipelines.estimates.sizes import Disk, disks
from pipelines.repository.cache import keeps_copies
from vapi_core.errors import VapiError

ANYWAY = "VAPI_ANYWAY"  # an environment variable: 1 lets stages start all the same
OF_VARIANT = ("align", "sample", "sample-control", "score", "score-control")  # stages of one variant or control


class SpaceError(VapiError):
    """The disk has too little room. `needed` and `free` are bytes."""

    def __init__(self, what: str, needed: float, free: float):
        numbers = f"{what} needs {needed / 1e9:.3g} GB more on the disk, where {free / 1e9:.3g} GB are free."
        remedy = "Free some space (`dvc gc --workspace` removes what older runs left in DVC's cache), or ask for less: "
        less = "fewer seeds, samples or variants. `vapi estimate` says what takes how much."
        super().__init__(f"{numbers} {remedy}{less} {ANYWAY}=1 starts all the same.")
        self.needed, self.free = needed, free


def to_come(stages: list[Disk], done: set[str], copies: bool) -> float:
    """Bytes that these stages still write at most, one after the other; those in `done` have written."""
    left = [disk for disk in stages if disk.stage not in done]
    lasting = sum(disk.output * (2 if copies else 1) + disk.kept for disk in left)
    return lasting + max((disk.working for disk in left), default=0.0)


def behind(stage: str, params: Params) -> list[Disk]:
    """A stage and what the experiment has behind it, as far as they write more than a page. What another table needs is
    asked for when its own stages start."""
    everything, experiment = disks(params), {v.name for v in all_variants(params) if v.table == EXPERIMENT}
    names = [disk.stage for disk in everything]
    if stage not in names:
        return []
    later = everything[names.index(stage) :]
    kind, _, own = stage.partition("@")
    variants = {own} if kind in OF_VARIANT else experiment
    return [disk for disk in later if _variant(disk.stage) in (None, *variants)]


def _variant(stage: str) -> str | None:
    """The variant of a stage; None of one that all share."""
    kind, _, name = stage.partition("@")
    return name if kind in OF_VARIANT else None


def finished(stages: list[Disk], root: Path = Path()) -> set[str]:
    """Those whose output is there, or whose images are: a stage that runs again replaces what it has."""
    return {disk.stage for disk in stages if disk.place is not None and any((root / disk.place).glob("*"))}


def require_space(params: Params, stage: str) -> None:
    """Raises SpaceError where the disk does not hold what a stage and those behind it write."""
    if os.environ.get(ANYWAY) == "1":
        return
    stages = behind(stage, params)
    needed = to_come(stages, finished(stages), keeps_copies())
    check(f"{stage}, with what is behind it,", needed, free_bytes())


def check(what: str, needed: float, free: float) -> None:
    """Raises SpaceError where there is too little."""
    if needed > free:
        raise SpaceError(what, needed, free)


def free_bytes() -> float:
    """Bytes that are free where outputs and the work folder lie; where these are two disks, on the fuller one."""
    return min(shutil.disk_usage(place).free for place in (Path(), WORK) if place.exists())
