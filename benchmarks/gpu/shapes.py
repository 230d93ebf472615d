"""What the parts measure on: full-size models of a profile, or in the quick form the tiny ones of `llamagen-smoke`."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import Setting, read_profile, setting
from benchmarks.options import parse

QUICK_PROFILE = "llamagen-smoke"
QUICK_IMAGES = 2
OFFICIAL_BATCH = 32  # of sample_c2i_ddp.py, --per-proc-batch-size


@dataclass(frozen=True)
class Asked:
    """What the command line says to every part."""

    quick: bool
    reference: Path | None  # folder of the official numbers
    folder: Path  # for what a part writes

    def profile(self, name: str) -> dict[str, Any]:
        """All of a profile, or of the one that stands for it in the quick form."""
        return read_profile(QUICK_PROFILE if self.quick else name)

    def setting(self, name: str, benchmark: str) -> Setting:
        """Shapes of a profile for `align` or `sample`, with the official batch of samples.

        In the quick form decoder and perceptual network are most of the work: few rollouts, and a small one for LPIPS.
        """
        if self.quick:
            few = ["--images", str(QUICK_IMAGES), "--group-size", "2"]
            return replace(setting(parse([benchmark, "--profile", QUICK_PROFILE, *few])), lpips=False)
        batch = ["--images", str(OFFICIAL_BATCH)] if benchmark == "sample" else []
        return setting(parse([benchmark, "--profile", name, *batch]))


def halves(number: int) -> Iterator[int]:
    """The number, half of it, and so on down to 1."""
    while number > 0:
        yield number
        number //= 2


def largest(number: int, fits: Callable[[int], bool]) -> int | None:
    """The first of `halves(number)` that fits, None if none does."""
    return next((n for n in halves(number) if fits(n)), None)


def fits(work: Callable[[], Any]) -> bool:
    """Whether a run of the work finds the memory that it needs."""
    try:
        work()
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where no GPU was used
    return True


def held_bytes(device: torch.device) -> int | None:
    """What is allocated on a GPU now; unknown on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None
