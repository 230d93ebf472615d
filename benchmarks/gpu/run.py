"""Runs the parts one after another, and writes the page anew after each."""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.gpu.page import page
from benchmarks.gpu.parts import PARTS, Part, measure_part
from benchmarks.gpu.process import Outcome, run_alone
from benchmarks.gpu.shapes import Asked
from vapi_core.errors import ParameterError
from vapi_core.files import atomic_path, write_json

LEAST_SECONDS = 20  # that a part is begun for


def run(options: argparse.Namespace) -> int:
    """The command: 0 if every part is done or had a reason to be skipped."""
    parts = chosen(options.parts)
    if not options.quick and not torch.cuda.is_available():
        raise ParameterError("--quick", "torch finds no GPU here; this is the form for a CPU, with tiny models.")
    options.folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    about = f"`python -m benchmarks {' '.join(sys.argv[1:])}`, commit {commit()}, {time.strftime('%Y-%m-%d %H:%M')}."

    def write(outcome: Outcome) -> None:
        outcomes.append(outcome)
        print(f"{outcome.part}: {outcome.status}, {outcome.seconds:.0f} s. {outcome.message}".rstrip(), flush=True)
        results = {"about": about, "quick": options.quick, "parts": [asdict(o) for o in outcomes]}
        write_json(options.folder / f"{options.name}.json", results)
        with atomic_path(options.folder / f"{options.name}.md") as temporary:
            Path(temporary).write_text(page(parts, outcomes, options.quick, about), encoding="utf-8")

    with TemporaryDirectory(dir=options.folder) as work:
        asked = Asked(options.quick, options.reference, Path(work))
        run_parts(parts, asked, options.minutes, write)
    print(f"the page: {options.folder / options.name}.md")
    return 1 if any(o.status in ("failed", "stopped") for o in outcomes) else 0


def run_parts(parts: list[Part], asked: Asked, minutes: float, write: Callable[[Outcome], None]) -> None:
    """Runs what the minutes allow; what they do not is told as skipped."""
    end = time.monotonic() + 60 * minutes
    for part in parts:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            write(Outcome(part.name, "skipped", message=f"the {minutes:g} minutes are over; --parts {part.name}"))
        else:
            limit = min(left, 60 * part.minutes)
            write(run_alone(part.name, measure_part, (part.name, asked), limit, asked.folder))


def chosen(names: list[str] | None) -> list[Part]:
    """The parts of these names, in our order; all without names.

    Raises:
        ParameterError: there is no such part.
    """
    known = [part.name for part in PARTS]
    if unknown := [name for name in names or [] if name not in known]:
        raise ParameterError("--parts", f"there is no {unknown[0]}; there are: {', '.join(known)}.")
    return [part for part in PARTS if names is None or part.name in names]


def commit() -> str:
    """Of the code, where this is a clone."""
    git = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
