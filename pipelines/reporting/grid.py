"""The grid of a sweep, one row per cell and seed: from DVC's experiments and from MLflow's runs alike, and to MLflow.

`vapi results` prints it as CSV, from DVC or, with `--from mlflow`, from MLflow; `from_dvc` and
`from_mlflow` are the same as pandas DataFrames. Scores have six digits, as in the metrics files.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.config.paths import WORK
from pipelines.reporting.charts import draw_heatmap, draw_lines, panels
from pipelines.tracking import mlflow_runs
from pipelines.tracking import runs as tracking
from pipelines.tracking.mlflow_runs import SCORE
from pipelines.variants.cells import DIGITS, FinishedCell, cells_of_head, experiments, read_cell, read_key
from pipelines.variants.sweep import AXES, is_cell, setting
from vapi_core.errors import FileError
from vapi_core.files import atomic_path
from vapi_core.scoring.statistics import mean_and_standard_error

COLUMNS = ("experiment", *AXES, "seed")
DRAWN = ("fid", "is_mean", "accuracy", "overall")
LABELS = {"noise_ratio": "ξ", "regularizer_weight": "β", "reward": "reward", "regularizer": "regularizer"}


def from_dvc(names: Iterable[str] | None = None) -> pd.DataFrame:
    """The finished cells among DVC's experiments, as git has them; all of HEAD's, or those of these names.

    Raises:
        FileError: this is no repository of git's, or git has no commit.
    """
    return _frame([row for cell in finished_cells(names) for row in _rows(cell)])


def finished_cells(names: Iterable[str] | None = None) -> list[FinishedCell]:
    """The cells whose scores can be read, of HEAD or of these names; what is wrong with one that was run is told."""
    wanted, found = None if names is None else set(names), []
    for name in cells_of_head() if wanted is None else [name for name in experiments() if name in wanted]:
        try:
            found.append(read_cell(name))
        except FileError as error:
            print(f"warning: {error}", file=sys.stderr)
    return found


def _rows(cell: FinishedCell) -> list[dict[str, Any]]:
    """One row per seed of a cell."""
    assert cell.variant.alignment is not None
    own = {"experiment": cell.experiment, **setting(cell.variant.alignment)}
    return [
        {**own, "seed": seed, **{name.removeprefix(SCORE): value for name, value in scores.items()}}
        for seed, scores in cell.scores.items()
    ]


def from_mlflow(experiment: str, names: Iterable[str] | None = None) -> pd.DataFrame:
    """The finished cells among the runs of an MLflow experiment (a profile); all that DVC's experiments made, or these."""
    rows = []
    wanted = None if names is None else set(names)
    for run in mlflow_runs.find_runs(experiment, "tags.stage = 'align' and attributes.status = 'FINISHED'"):
        name, p = run.data.tags.get(mlflow_runs.EXPERIMENT_TAG), run.data.params
        if name is None or not is_cell(name) or (wanted is not None and name not in wanted):
            continue
        metrics = {n.removeprefix(SCORE): v for n, v in run.data.metrics.items() if n.startswith(SCORE)}
        if not metrics:  # it is not scored yet
            continue
        weight = float(p["regularizer_weight"]) if p["regularizer"] != "none" else 0.0
        own = dict(zip(AXES, (float(p["noise_ratio"]), p["regularizer"], weight, p["terms"]), strict=True))
        scores = {n: float(f"{v:.{DIGITS}g}") for n, v in metrics.items()}
        rows.append({"experiment": name, **own, "seed": int(p["seed"]), **scores})
    return _frame(rows)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    scores = sorted({name for row in rows for name in row} - set(COLUMNS))
    table = pd.DataFrame(rows, columns=[*COLUMNS, *scores])
    return table.sort_values([*AXES, "seed", "experiment"], ignore_index=True)


def over_axis(grid: pd.DataFrame, axis: str, score: str) -> dict[str, pd.DataFrame]:
    """Lines of a score over one axis, one per combination of the others: columns x, y and standard error over seeds."""
    others = [name for name in AXES if name != axis and grid[name].nunique() > 1]
    lines = {}
    for key, part in grid.groupby(others, sort=False) if others else [((), grid)]:
        name = ", ".join(f"{LABELS[other]} {value}" for other, value in zip(others, key, strict=True))
        rows = [(x, *mean_and_standard_error(group[score].to_numpy())) for x, group in part.groupby(axis)]
        lines[name] = pd.DataFrame(rows, columns=["x", "y", "error"])
    return lines


def over_plane(grid: pd.DataFrame, rows: str, columns: str, score: str) -> pd.DataFrame:
    """Mean of a score over all else, by two axes."""
    grid = grid.rename(columns={rows: LABELS[rows], columns: LABELS[columns]})
    return grid.pivot_table(index=LABELS[rows], columns=LABELS[columns], values=score, aggfunc="mean", sort=True)


def draw(grid: pd.DataFrame, folder: Path) -> list[Path]:
    """The figures of a grid, one panel per score: lines over ξ and β, heatmaps of ξ and β, and of reward and regularizer."""
    scores = [n for n in grid.columns if n.partition(" ")[0] in DRAWN and grid[n].notna().all()]
    varied = {axis for axis in AXES if grid[axis].nunique() > 1}
    files = []

    def figure(name: str, draw_panel: Any, **labels: str) -> None:
        from pipelines.reporting.figures import save_figure

        made, axes = panels(len(scores))
        for ax, score in zip(axes, scores, strict=True):
            draw_panel(ax, score)
            ax.set(title=score, **labels)
        files.append(folder / f"{name}.png")
        save_figure(files[-1], made)

    for axis in ("noise_ratio", "regularizer_weight"):
        if axis in varied:
            log = axis == "regularizer_weight" and bool((grid[axis] > 0).all())
            figure(
                f"over-{axis}",
                lambda ax, score, axis=axis, log=log: draw_lines(ax, over_axis(grid, axis, score), log),
                xlabel=LABELS[axis],
            )
    for rows, columns in (("regularizer_weight", "noise_ratio"), ("reward", "regularizer")):
        if {rows, columns} <= varied:
            figure(
                f"{rows}-by-{columns}",
                lambda ax, score, rows=rows, columns=columns: draw_heatmap(ax, over_plane(grid, rows, columns, score)),
            )
    return files


def publish(sweep: str, profile: str, form: dict[str, Any], names: Iterable[str]) -> pd.DataFrame:
    """Makes the sweep a run of MLflow, parent of its cells, with form, grid and figures; replaces an earlier one.

    Args:
        sweep: its name.
        profile: the MLflow experiment.
        names: DVC's experiments that are its cells, finished or not.
    """
    names = sorted(names)
    finished = finished_cells(names)
    grid = _frame([row for cell in finished for row in _rows(cell)])
    folder = WORK / "sweeps" / sweep
    with atomic_path(folder / "grid.csv") as temporary:
        grid.to_csv(temporary, index=False, lineterminator="\n")
    files = [folder / "grid.csv", *(draw(grid, folder) if len(grid) else [])]
    claim_runs(finished, profile)
    key = tracking.stage_key("sweep", {"cells": names}, [])
    tags = {"stage": "sweep", "profile": profile}
    with tracking.stage_run(experiment=profile, name=sweep, key=key, params=form, tags=tags) as run:
        run.log({"finished_cells": grid["experiment"].nunique(), "cells": len(names)})
        run.table("grid", grid.replace({np.nan: None}).to_dict("records"))
        for file in files:
            run.artifact(file)
        run.adopt(mlflow_runs.keys_of_experiments(profile, names))
    return grid


def claim_runs(finished: Iterable[FinishedCell], profile: str) -> None:
    """Gives the runs of cells that DVC took from its cache, made under another name, the name they have in the grid."""
    cells = {cell.experiment: cell for cell in finished}
    told = from_mlflow(profile, cells)
    known = set(zip(told["experiment"], told["seed"], strict=True))
    for name, cell in cells.items():
        for seed in cell.scores:
            if (name, seed) not in known and (key := read_key(cell, seed)) is not None:
                mlflow_runs.name_experiment(profile, key, name)
