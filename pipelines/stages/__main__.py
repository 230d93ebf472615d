"""`python -m pipelines.stages NAME ...` runs a stage of the DVC graph, as dvc.yaml does.

MLflow takes as long to import as torch. So the process that sends metrics is started here, before the stage is
imported.
"""

import sys
from importlib import import_module

from pipelines.config.paths import STAGES
from pipelines.processes import end_with_dvc
from pipelines.tracking.uploader import start_early


def main(arguments: list[str]) -> int:
    """Runs the stage that the first argument names with the others; returns the exit code."""
    if not arguments or arguments[0] not in STAGES:
        print(f"usage: python -m pipelines.stages STAGE ...\nSTAGE is one of {', '.join(STAGES)}", file=sys.stderr)
        return 2
    end_with_dvc()
    start_early()
    return import_module(f"pipelines.stages.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
