"""The grid of all cells that were run, as CSV."""

import sys
from collections.abc import Sequence

from pipelines.reporting.grid import from_dvc, from_mlflow
from pipelines.tracking import runs
from vapi_core.errors import ParameterError, quoted
from vapi_core.files import read_yaml


def results(cells: Sequence[str] = (), source: str = "dvc", profile: str | None = None) -> None:
    """Prints it.

    Args:
        cells: only these, by the names of their DVC experiments.
        source: dvc or mlflow.
        profile: for mlflow, the experiment; without it that of params.yaml.

    Raises:
        ParameterError: there is no such source.
    """
    names = list(cells) or None
    if source == "dvc":
        grid = from_dvc(names)
    elif source == "mlflow":
        runs.close_killed()
        grid = from_mlflow(profile or read_yaml("params.yaml")["profile"], names)
    else:
        raise ParameterError("--from", f"there is no {quoted(source)}; there are dvc and mlflow.")
    grid.to_csv(sys.stdout, index=False, lineterminator="\n")
