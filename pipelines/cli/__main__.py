"""Runs `vapi`; `python -m pipelines.cli` is the same."""

import sys
from collections.abc import Sequence

from pipelines.cli import experiment, images, servers  # noqa: F401  each adds its subcommands
from pipelines.cli.app import app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code: 2 where it is typed wrong."""
    try:
        app(None if arguments is None else list(arguments), prog_name="vapi")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
