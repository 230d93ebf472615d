"""Figures of a grid of cells: lines and bars with error bars, heatmaps, samples of every row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.frame.grids import tile
from pipelines.reporting.figures import save_figure

Points = Mapping[str, pd.DataFrame]  # line -> columns x, y, error; one row per point


def draw_lines(axes: Any, lines: Points, log: bool = False) -> None:
    """One line with error bars per entry; over categories where x is no number."""
    for name, points in lines.items():
        axes.errorbar(points["x"], points["y"], yerr=points["error"], label=name, marker="o", markersize=4, capsize=3)
    if log:
        axes.set_xscale("log")
    if len(lines) > 1:
        axes.legend(fontsize=7)


def draw_points(axes: Any, points: pd.DataFrame, log: bool = False) -> None:
    """One point with its error per row of x, y, error."""
    axes.errorbar(points["x"], points["y"], yerr=points["error"], fmt="o", markersize=4, capsize=3)
    if log:
        axes.set_xscale("log")


def draw_bars(axes: Any, points: pd.DataFrame) -> None:
    """One bar with its error per row of x, y, error."""
    positions = np.arange(len(points))
    axes.bar(positions, points["y"], yerr=points["error"], capsize=3, color="tab:blue", alpha=0.7)
    axes.set_xticks(positions, points["x"], rotation=30, ha="right", fontsize=8)


def draw_heatmap(axes: Any, grid: pd.DataFrame) -> None:
    """The values of a grid, each written in its field; rows and columns are named by the index and the columns."""
    values = grid.to_numpy(float)
    image = axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_xticks(range(grid.shape[1]), grid.columns, rotation=30, ha="right")
    axes.set_yticks(range(grid.shape[0]), grid.index)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=color, fontsize=7)
    axes.set(xlabel=grid.columns.name, ylabel=grid.index.name)
    axes.figure.colorbar(image, ax=axes)


def panels(count: int, columns: int = 3) -> tuple[Any, list[Any]]:
    """A figure with so many panels, row by row."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[count:]:
        unused.axis("off")
    return figure, axes[:count]


def plot_samples(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """One row of images uint8 [N, H, W, 3] per entry, under each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.72 * len(rows)), layout="constrained")
    for axes, (name, images) in zip(np.atleast_1d(figure.subplots(len(rows), 1)), rows.items(), strict=True):
        axes.imshow(tile(images, len(images)), interpolation="nearest", aspect="auto")
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
    save_figure(path, figure)
