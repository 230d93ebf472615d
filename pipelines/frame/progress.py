"""Progress for people: a live bar with rate and remaining time in a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vapi_core.distributed import is_main

LINES = 10  # of a log, for one task


class Advance(Protocol):
    def __call__(self, amount: int = 1, note: str = "") -> None:
        """Counts `amount` items as done; `note` is shown beside the bar, e.g. the loss."""
        ...


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Advance]:
    """Shows how far `total` items are until the block ends, in `unit` per second. Only the main process does."""
    if not is_main():
        yield lambda amount=1, note="": None
        return
    started = time.monotonic()
    done = 0

    def rate() -> float:
        return done / max(time.monotonic() - started, 1e-9)

    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total, rate="", note="")

            def advance(amount: int = 1, note: str = "") -> None:
                nonlocal done
                done += amount
                bar.update(task, advance=amount, rate=f"{rate():.3g} {unit}/s", note=note)

            yield advance
    else:
        due = total / LINES

        def advance(amount: int = 1, note: str = "") -> None:
            nonlocal done, due
            done += amount
            if done >= due:
                due += total / LINES
                left = max(0, total - done) / max(rate(), 1e-9)
                print(
                    f"{description}: {done}/{total}, {rate():.3g} {unit}/s, {left:.0f} s left {note}",
                    file=sys.stderr,
                    flush=True,
                )

        yield advance
