"""The grid of a sweep, one row per cell and seed: from DVC's experiments and from MLflow's runs alike, and to MLflow.

`vapi results` prints it as CSV, from DVC or, with `--from mlflow`, from MLflow; `from_dvc` and
`from_mlflow` are the same as pandas DataFrames. Scores have six digits, as in the metrics files.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.config.paths import WORK
from pipelines.config.variant import ABLATION, BASE
from pipelines.reporting.grid_figures import best_cell, draw, draw_answer
from pipelines.reporting.sweep_page import write_sweep_page
from pipelines.repository.git import experiments
from pipelines.tracking import mlflow_runs
from pipelines.tracking import runs as tracking
from pipelines.tracking.mlflow_runs import SCORE
from pipelines.variants.cells import DIGITS, FinishedCell, cells_of_head, read_cell, read_key, read_variant
from pipelines.variants.sweep import AXES, is_cell, setting
from vapi_core.errors import FileError
from vapi_core.files import atomic_path, read_json, write_json

CELLS, PAGE = "cells.json", "sweep.html"  # of a sweep's folder
COLUMNS = ("experiment", *AXES, "seed")


def from_dvc(names: Iterable[str] | None = None) -> pd.DataFrame:
    """The finished cells among DVC's experiments, as git has them; all of HEAD's, or those of these names.

    Raises:
        FileError: this is no repository of git's, or git has no commit.
    """
    return grid_of(finished_cells(names))


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
    """The finished cells among the runs of an MLflow experiment (a profile): all of DVC's experiments, or these."""
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
        credit = p.get("credit", "image")  # runs of before there was another
        own = dict(zip(AXES, (float(p["noise_ratio"]), p["regularizer"], weight, p["terms"], credit), strict=True))
        scores = {n: float(f"{v:.{DIGITS}g}") for n, v in metrics.items()}
        rows.append({"experiment": name, **own, "seed": int(p["seed"]), **scores})
    return _frame(rows)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    scores = sorted({name for row in rows for name in row} - set(COLUMNS))
    table = pd.DataFrame(rows, columns=[*COLUMNS, *scores])
    return table.sort_values([*AXES, "seed", "experiment"], ignore_index=True)


@dataclass
class SweepRun:
    """A sweep's run in MLflow while its cells run: what is done, the best so far, the time left."""

    run: tracking.StageRun
    folder: Path
    names: list[str]  # DVC's experiments that are its cells, finished or not; of a search those that have begun
    upstream: str | None  # the experiment that has the base's scores
    total: int  # how many cells there will be
    started: float = field(default_factory=time.monotonic)
    told: int = 0  # how many cells had ended when it last told

    def update(self, ended: int) -> None:
        """Tells how far the sweep is; called when cells have ended, well or not.

        Args:
            ended: how many; those that were finished before the sweep began count.
        """
        if ended == self.told:
            return
        self.told = ended
        spent = time.monotonic() - self.started
        facts = {"ended": float(ended), "cells": float(self.total), "minutes": spent / 60}
        facts["minutes_left"] = spent / ended * (self.total - ended) / 60
        finished = finished_cells(self.names)
        if finished:
            grid, score = grid_of(finished), f"fid/{finished[0].main}"
            facts[f"best/{score}"] = grid[grid["experiment"] == best_cell(grid, score)][score].mean()
            self.draw_answer(grid, finished[0].main)
        self.run.log({f"sweep/{name}": value for name, value in facts.items()}, step=ended)

    def draw_answer(self, grid: pd.DataFrame, main: str) -> None:
        """The answer so far. All have step 0, of which MLflow shows the newest; of several steps it would show none
        before somebody moves the slider."""
        path = self.folder / "answer.png"
        draw_answer(path, grid, self.base_scores, main)
        self.run.image(tracking.ANSWER, path, 0)

    @cached_property
    def base(self) -> FinishedCell | None:
        """The base that all cells build on; it is finished before they begin."""
        return base_of(self.upstream)

    @property
    def base_scores(self) -> pd.DataFrame:
        """Scores of the base, a row per seed; no row where they cannot be read."""
        scores = {} if self.base is None else self.base.scores
        return pd.DataFrame([{n.removeprefix(SCORE): v for n, v in found.items()} for found in scores.values()])

    def conclude(self, profile: str) -> pd.DataFrame:
        """Attaches grid, figures and page, and makes the runs of the cells its own; returns the grid."""
        finished = finished_cells(self.names)
        grid = grid_of(finished)
        with atomic_path(self.folder / "grid.csv") as temporary:
            grid.to_csv(temporary, index=False, lineterminator="\n")
        files = [self.folder / "grid.csv"]
        if finished:
            files += draw(grid, self.folder, self.base_scores)
            if self.told < self.total:
                self.draw_answer(grid, finished[0].main)
            files.append(self.folder / "answer.png")
            write_json(self.folder / CELLS, {"cells": self.names, "upstream": self.upstream})
            files.append(self.folder / PAGE)
            write_sweep_page(files[-1], self.folder.name, grid, finished, self.base)
        claim_runs(finished, profile)
        self.run.log({"finished_cells": len(finished), "cells": self.total})
        self.run.table("grid", grid.replace({np.nan: None}).to_dict("records"))
        for file in files:
            self.run.artifact(file)
        self.run.adopt(mlflow_runs.keys_of_experiments(profile, self.names))
        return grid


def base_of(upstream: str | None) -> FinishedCell | None:
    """The base that all cells build on; None where its scores cannot be read, which is told."""
    if upstream is None:
        return None
    try:
        return read_variant(upstream, BASE)
    except FileError as error:
        print(f"warning: {error}", file=sys.stderr)
        return None


def write_page_again(sweep: str, file: Path | None = None) -> Path:
    """Writes the page of a sweep that has ended in this folder, from its experiments; returns where.

    Raises:
        FileError: there is no such sweep, or none of its cells can be read.
    """
    folder = WORK / "sweeps" / sweep
    if not (folder / CELLS).is_file():
        known = ", ".join(sorted(path.parent.name for path in folder.parent.glob(f"*/{CELLS}"))) or "none yet"
        raise FileError(folder, f"no sweep of this name has ended here; there are: {known}.", "Run the sweep again.")
    facts = read_json(folder / CELLS)
    if not (finished := finished_cells(facts["cells"])):
        raise FileError(folder / CELLS, "git has none of these experiments any more.", "Run the sweep again.")
    path = folder / PAGE if file is None else file
    write_sweep_page(path, sweep, grid_of(finished), finished, base_of(facts["upstream"]))
    return path


@contextmanager
def sweep_run(
    sweep: str,
    profile: str,
    form: dict[str, Any],
    names: Iterable[str],
    upstream: str | None = None,
    budget: int | None = None,
) -> Iterator[SweepRun]:
    """The run of a sweep for the duration of a block, in which its cells run; replaces an earlier one.

    Args:
        sweep: its name.
        profile: the MLflow experiment.
        names: DVC's experiments that are its cells, finished or not; of a search none, and they are added.
        upstream: the experiment that has the base's scores.
        budget: of a search, how many cells there may be.
    """
    names = sorted(names)
    key = tracking.stage_key("sweep", {"cells": names} if budget is None else {"search": sweep}, [])
    tags = {"stage": "sweep", "profile": profile, ABLATION: "sweep"}
    with tracking.stage_run(experiment=profile, name=sweep, key=key, params=form, tags=tags) as run:
        yield SweepRun(run, WORK / "sweeps" / sweep, names, upstream, len(names) if budget is None else budget)


def publish(
    sweep: str, profile: str, form: dict[str, Any], names: Iterable[str], upstream: str | None = None
) -> pd.DataFrame:
    """Makes an ended sweep a run of MLflow, parent of its cells, with form, grid and figures: see `sweep_run`."""
    with sweep_run(sweep, profile, form, names, upstream) as tracked:
        return tracked.conclude(profile)


def grid_of(finished: Iterable[FinishedCell]) -> pd.DataFrame:
    """The grid of these cells."""
    return _frame([row for cell in finished for row in _rows(cell)])


def claim_runs(finished: Iterable[FinishedCell], profile: str) -> None:
    """Gives the runs of cells that DVC took from its cache, made under another name, the name they have in the grid."""
    cells = {cell.experiment: cell for cell in finished}
    told = from_mlflow(profile, cells)
    known = set(zip(told["experiment"], told["seed"], strict=True))
    for name, cell in cells.items():
        for seed in cell.scores:
            if (name, seed) not in known and (key := read_key(cell, seed)) is not None:
                mlflow_runs.name_experiment(profile, key, name)
