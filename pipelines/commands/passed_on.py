"""Subcommands whose options belong to another module: it gets them as if it had been called itself."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module


def _call(main: Callable[[], int | None], name: str, arguments: Sequence[str]) -> int:
    before, sys.argv = sys.argv, [name, *arguments]
    try:
        return main() or 0
    finally:
        sys.argv = before


def sweep(arguments: Sequence[str]) -> int:
    """A grid of alignments as a Prefect flow; its options are those of the form."""
    from pipelines.flows.ablation_sweep import main

    return _call(main, "vapi sweep", arguments)


def bench(arguments: Sequence[str]) -> int:
    """Our schedule beside the authors'. benchmarks/ has its own parser, because it runs on bare GPU machines too."""
    return _call(import_module("benchmarks.__main__").main, "vapi bench", arguments)
