"""`python -m pipelines.commands.results`: the grid of all cells that were run, as CSV."""

import argparse
import sys

from pipelines.frame.launch import one_message
from pipelines.reporting.grid import from_dvc, from_mlflow
from pipelines.tracking import runs
from vapi_core.files import read_yaml


@one_message
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.commands.results", description="Prints the grid of all cells that were run, as CSV."
    )
    parser.add_argument("--from", dest="source", choices=["dvc", "mlflow"], default="dvc")
    parser.add_argument("--profile", help="for mlflow: the experiment; without it that of params.yaml")
    parser.add_argument("experiments", nargs="*", help="only these cells, by the names of their DVC experiments")
    options = parser.parse_args(arguments)
    names = options.experiments or None
    if options.source == "dvc":
        grid = from_dvc(names)
    else:
        runs.close_killed()
        grid = from_mlflow(options.profile or read_yaml("params.yaml")["profile"], names)
    grid.to_csv(sys.stdout, index=False, lineterminator="\n")


if __name__ == "__main__":
    sys.exit(main())
