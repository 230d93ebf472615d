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


def dashboards() -> int:
    """MLflow's views of the profile of params.yaml."""
    from pipelines.tracking.dashboards import main

    return _call(main, "vapi dashboards", [])


def upload() -> int:
    """What was kept for MLflow is sent."""
    from pipelines.tracking.__main__ import main

    return _call(main, "vapi upload", ["upload"])
