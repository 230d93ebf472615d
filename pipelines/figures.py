"""Pictures for people: grids of images as PNG, and the figures of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vapi_core.files import atomic_path

MIN_SIDE = 56  # pixels: smaller images are enlarged by whole factors


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """One picture [rows * H, columns * W, 3] of images [N, H, W, 3], row by row; the last row is filled with white."""
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * columns, h, w, 3), 255, np.uint8)
    canvas[:n] = images
    return canvas.reshape(rows, columns, h, w, 3).swapaxes(1, 2).reshape(rows * h, columns * w, 3)


def save_grid(path: Path, images: np.ndarray, columns: int) -> None:
    """Writes images uint8 [N, H, W, 3] as one PNG."""
    scale = max(1, MIN_SIDE // images.shape[1])
    picture = tile(images, columns).repeat(scale, 0).repeat(scale, 1)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def save_figure(path: Path, figure) -> None:
    """Writes a matplotlib figure as PNG without its creation date, so that equal figures are equal files."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})


def side_by_side(path: Path, grids: Mapping[str, np.ndarray], columns: int) -> None:
    """Grids of images beside each other, each under its title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(grids), 3.4))
    for axes, (title, images) in zip(np.atleast_1d(figure.subplots(1, len(grids))), grids.items(), strict=True):
        axes.imshow(tile(images, columns), interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    save_figure(path, figure)


def plot_curves(path: Path, curves: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str]) -> None:
    """One panel per metric, one line per run. `curves` maps run -> metric -> values over steps (NaN: not measured)."""
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for run, metrics in curves.items():
            if name in metrics:
                values = np.asarray(metrics[name], float)
                measured = np.flatnonzero(~np.isnan(values))
                axes.plot(measured + 1, values[measured], label=run, linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    for axes in panels[len(names) :]:
        axes.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    save_figure(path, figure)


def plot_precision_recall(path: Path, scores) -> None:
    """Precision against recall, a panel per extractor: a dot per set, lines through the base's temperatures.

    What only sharpens moves along the line of the base; what improves leaves it. `scores` is the table of stage `score`.
    """
    from matplotlib.figure import Figure

    extractors = list(scores["extractor"].unique())
    figure = Figure(figsize=(4.6 * len(extractors), 3.8), layout="constrained")
    for axes, extractor in zip(np.atleast_1d(figure.subplots(1, len(extractors))), extractors, strict=True):
        part = scores[scores["extractor"] == extractor]
        for (model, guidance), group in part.groupby(["model", "guidance_scale"], sort=False):
            label = model if guidance == 1.0 else f"{model}, guidance {guidance}"
            dots = axes.scatter(group["recall"], group["precision"], s=14, label=label)
            means = group.groupby("temperature")[["recall", "precision"]].mean().sort_index()
            if len(means) > 1:
                axes.plot(means["recall"], means["precision"], linewidth=1, color=dots.get_facecolor()[0])
                for temperature, (recall, precision) in means.iterrows():
                    axes.annotate(f"T {temperature}", (recall, precision), fontsize=7)
        axes.set(title=extractor, xlabel="recall", ylabel="precision")
    axes.legend(fontsize=7)
    save_figure(path, figure)
