"""Figures of a sweep's grid: which cell is best, with all seeds and the base; lines over ξ and β; heatmaps."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.reporting.charts import draw_heatmap, draw_lines, draw_points, panels
from pipelines.reporting.figures import save_figure
from pipelines.reporting.statistics import LOWER_IS_BETTER
from pipelines.variants.score_files import SCORE_TITLES
from pipelines.variants.sweep import AXES
from vapi_core.scoring.statistics import mean_and_standard_error, t_interval

DRAWN = ("fid", "is_mean", "accuracy", "overall")
LABELS = {
    "noise_ratio": "ξ",
    "regularizer_weight": "β",
    "reward": "reward",
    "regularizer": "regularizer",
    "credit": "credit",
}


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


def cell_name(row: Any) -> str:
    """What a cell is, for people: ξ 0.5 · β 0.1 · ce · mse+perceptual."""
    weight = [] if row["regularizer"] == "none" else [f"β {row['regularizer_weight']:g}"]
    credit = [f"credit {row['credit']}"] if row.get("credit", "image") != "image" else []
    return " · ".join([f"ξ {row['noise_ratio']:g}", *weight, row["regularizer"], row["reward"], *credit])


def lower_is_better(score: str) -> bool:
    """Of a score as the grid's columns name it: fid/scorer."""
    return score.partition("/")[0] in LOWER_IS_BETTER


def titled(score: str) -> str:
    """A score and its better direction, for people."""
    name, _, extractor = score.partition("/")
    return f"{SCORE_TITLES[name]} by {extractor}: {'lower' if lower_is_better(score) else 'higher'} is better"


def answer_scores(grid: pd.DataFrame, main: str) -> list[str]:
    """What a sweep's answer is about, the score that decides first: FID of the main extractor, and what is wanted."""
    wanted = [f"{name}/{by}" for name, by in (("overall", "geneval"), ("accuracy", "scorer"), ("is_mean", main))]
    return [f"fid/{main}", *[score for score in wanted if score in grid][:1]]


def ranking(grid: pd.DataFrame, score: str) -> list[str]:
    """Experiments by their mean of a score over seeds, the best first; those behind that a search has pruned, which
    have fewer seeds."""
    cells = grid.groupby("experiment").agg(mean=(score, "mean"), seeds=("seed", "nunique"))
    cells["pruned"] = cells["seeds"] < cells["seeds"].max()
    return list(cells.sort_values(["pruned", "mean"], ascending=[True, lower_is_better(score)], kind="stable").index)


def best_cell(grid: pd.DataFrame, score: str) -> str:
    """The experiment with the best mean of a score over seeds."""
    return ranking(grid, score)[0]


def draw_answer(path: Path, grid: pd.DataFrame, base: pd.DataFrame, main: str) -> None:
    """Every cell's seeds, their mean and its 95 % interval, the best cell first and named; the base's mean is a line.

    Args:
        base: scores of the base as the grid has them, one row per seed; it may have none.
    """
    from matplotlib.figure import Figure

    scores = answer_scores(grid, main)
    order = ranking(grid, scores[0])
    cells = [(cell_name(rows.iloc[0]), rows) for rows in (grid[grid["experiment"] == name] for name in order)]
    figure = Figure(figsize=(4.4 * len(scores) + 2, 1.6 + 0.3 * len(cells)), layout="constrained")
    panels_ = np.atleast_1d(figure.subplots(1, len(scores), sharey=True))
    for ax, score in zip(panels_, scores, strict=True):
        for place, (_, rows) in enumerate(cells):
            values, best = rows[score].to_numpy(), place == 0
            color = "tab:red" if best else "tab:blue"
            ax.plot(values, np.full(len(values), place), ".", color=color, alpha=0.35, markersize=5)
            low, high = t_interval(values)
            ax.plot([low, high], [place, place], color=color, linewidth=1.5)
            ax.plot(values.mean(), place, "o", color=color, markersize=6)
        if score in base:
            mean = base[score].mean()
            ax.axvline(mean, linestyle="--", color="grey", linewidth=1.2, label=f"base {mean:.3g}")
            ax.legend(fontsize=8, loc="best")
        ax.set_title(titled(score), fontsize=10)
        ax.grid(axis="x", alpha=0.3)
    panels_[0].set_yticks(range(len(cells)), [name for name, _ in cells], fontsize=8)
    panels_[0].invert_yaxis()
    panels_[0].get_yticklabels()[0].set(color="tab:red", fontweight="bold")
    name, rows = cells[0]
    count = grid.groupby("experiment")["seed"].nunique().max()
    told = f"best of {len(cells)}: {name}, {titled(scores[0]).partition(':')[0]} {rows[scores[0]].mean():.3g}"
    figure.suptitle(f"{told}\nmean and 95 % interval over {count} seeds; a dot is a seed", fontsize=10)
    save_figure(path, figure)


def is_table(cells: pd.DataFrame, rows: str, columns: str) -> bool:
    """Whether at least half of the combinations of two axes are there; a search's cells are scattered."""
    return 2 * len(cells.drop_duplicates([rows, columns])) >= cells[rows].nunique() * cells[columns].nunique()


def draw_axis(axes: Any, lines: dict[str, pd.DataFrame], log: bool) -> None:
    """Lines over an axis; where no two cells differ in that axis alone, as of a search, their points."""
    if len(lines) > 1 and all(len(line) == 1 for line in lines.values()):
        draw_points(axes, pd.concat(lines.values()), log)
    else:
        draw_lines(axes, lines, log)


def draw(grid: pd.DataFrame, folder: Path, base: pd.DataFrame) -> list[Path]:
    """The figures of a grid, one panel per score: lines over ξ and β, heatmaps of ξ and β, and of reward and
    regularizer.

    `base` is as of `draw_answer`; it is a line among the lines.
    """
    scores = [n for n in grid.columns if n.partition("/")[0] in DRAWN and grid[n].notna().all()]
    varied = {axis for axis in AXES if grid[axis].nunique() > 1}
    files = []

    def figure(name: str, draw_panel: Any, **labels: str) -> None:
        made, axes = panels(len(scores))
        for ax, score in zip(axes, scores, strict=True):
            draw_panel(ax, score)
            if labels and score in base:
                ax.axhline(base[score].mean(), linestyle="--", color="grey", linewidth=1, label="base")
                ax.legend(fontsize=7)
            ax.set_title(titled(score), fontsize=9)
            ax.set(**labels)
        files.append(folder / f"{name}.png")
        save_figure(files[-1], made)

    for axis in ("noise_ratio", "regularizer_weight"):
        if axis in varied:
            log = axis == "regularizer_weight" and bool((grid[axis] > 0).all())
            figure(
                f"over-{axis}",
                lambda ax, score, axis=axis, log=log: draw_axis(ax, over_axis(grid, axis, score), log),
                xlabel=LABELS[axis],
            )
    for rows, columns in (("regularizer_weight", "noise_ratio"), ("reward", "regularizer")):
        if {rows, columns} <= varied and is_table(grid, rows, columns):
            figure(
                f"{rows}-by-{columns}",
                lambda ax, score, rows=rows, columns=columns: draw_heatmap(ax, over_plane(grid, rows, columns, score)),
            )
    return files
