"""Stage `ablation-TABLE`: one of the paper's ablation tables from its cells, beside the paper's own numbers."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.ablations import PAPER, TITLES, judge, summarize
from pipelines.ablations_text import label, scores_drawn, write_ablation
from pipelines.cells import TABLES, Cell, table_rows
from pipelines.figures import save_figure
from pipelines.grid_figures import draw_bars, draw_lines, panels, plot_samples
from pipelines.inputs import read_scores
from pipelines.params import Params
from pipelines.paths import ABLATION_REPORTS, BASE, RUN_FILE, remedy
from pipelines.stage import Stage, StagePlan, run_stage
from pipelines.stages.cell import IMAGES, SCORES
from vapi_core.files import atomic_path, read_texts


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    return StagePlan(
        f"ablation-{arguments.table}",
        None,
        {"table": arguments.table, "seeds": params.align.seeds, **params.ablations.model_dump()},
        tuple(cell.directory for cell in table_rows(params, arguments.table)),
        parent=None,
        reports=ABLATION_REPORTS,
    )


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    table, params = arguments.table, stage.params
    cells = table_rows(params, table)
    sets = read_sets(cells, params)
    summary = summarize(sets)
    with atomic_path(ABLATION_REPORTS / f"{table}.csv") as temporary:
        summary.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    plot_table(ABLATION_REPORTS / f"{table}.png", table, summary)
    first = [cell for cell in cells if cell.seed == params.align.seeds[0]]
    images = {label(table, name_of(cell)): np.load(cell.directory / IMAGES) for cell in first}
    plot_samples(ABLATION_REPORTS / f"{table}-samples.png", images)
    write_ablation(ABLATION_REPORTS / f"{table}.md", table, params, summary, judge(sets, table))
    for end in (".md", ".csv", ".png", "-samples.png"):
        stage.run.artifact(ABLATION_REPORTS / f"{table}{end}")
    stage.run.table("cells", sets.to_dict("records"))
    stage.run.adopt([read_texts(cell.directory / RUN_FILE, ["key"], remedy(cell.directory))["key"] for cell in cells])
    stage.metrics["cells"] = len(cells)


def name_of(cell: Cell) -> str:
    """The name of a cell's row; those that belong to no table have that of what they are."""
    return cell.row or cell.table


def read_sets(cells: list[Cell], params: Params) -> pd.DataFrame:
    """One row per cell and extractor: its row, its settings, its seed and its scores."""
    parts = []
    for cell in cells:
        scores = read_scores(cell.directory / SCORES)
        parts.append(scores.assign(row=name_of(cell), **cell.settings(params)))
    return pd.concat(parts, ignore_index=True)


def plot_table(path: Path, table: str, summary: pd.DataFrame) -> None:
    """The paper's numbers, then each of our scores, each in its own panel; the base is a dashed line."""
    paper = pd.DataFrame.from_dict(PAPER[table], orient="index").rename_axis("row").reset_index()
    drawn = [("paper", name, paper.rename(columns={name: "y"})) for name in paper.columns if name != "row"]
    for extractor, score in scores_drawn(table, summary):
        part = summary[summary["extractor"] == extractor]
        drawn.append((extractor, TITLES[score], part.rename(columns={score: "y", f"{score}_se": "error"})))
    figure, axes = panels(len(drawn))
    for ax, (source, score, rows) in zip(axes, drawn, strict=True):
        if "error" not in rows:
            rows = rows.assign(error=np.nan)
        base, aligned = rows[rows["row"] == BASE], rows[rows["row"] != BASE]
        if table == "reward":
            draw_bars(ax, rows.assign(x=[label(table, row) for row in rows["row"]]))
        elif table == "noise":
            draw_lines(ax, {"ξ": aligned.assign(x=aligned["row"].astype(float))})
        else:
            names = aligned["row"].str.partition("-")  # kind, "-", weight
            placed = aligned.assign(kind=names[0], x=names[2].astype(float))
            lines = {str(kind).upper(): part for kind, part in placed.groupby("kind")}
            draw_lines(ax, lines, log=True)
        if table != "reward":
            ax.axhline(base["y"].iloc[0], linestyle="--", color="grey", linewidth=1)
            ax.set_xlabel({"noise": "noise ratio ξ", "regularizer": "weight β"}[table])
        ax.set_title(f"{source}: {score}", fontsize=9)
    save_figure(path, figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", choices=TABLES, required=True)
    run_stage(plan, work, parser)
