"""Pictures for people: grids of images as PNG, and the figures of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.frame.grids import tile
from vapi_core.files import atomic_path

CURVE_COLUMNS = 4
BESIDE = {"textcoords": "offset points"}  # of a label: its place is in points from what it names
Curve = Mapping[str, np.ndarray]  # metric -> values over steps, NaN where it was not measured


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


def plot_curves(path: Path, curves: Mapping[str, Sequence[Curve]], names: Sequence[str]) -> None:
    """One panel per metric over steps, one colour per alignment, one line for each of its seeds.

    Metrics that no alignment measured have no panel.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = [name for name in names if any(name in curve for runs in curves.values() for curve in runs)]
    rows = -(-len(names) // CURVE_COLUMNS)
    figure = Figure(figsize=(3.4 * CURVE_COLUMNS, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, CURVE_COLUMNS, squeeze=False).ravel()
    lines = {}
    for axes, name in zip(panels, names, strict=False):
        for number, (alignment, runs) in enumerate(curves.items()):
            for curve in runs:
                if name in curve:
                    values = np.asarray(curve[name], float)
                    measured = np.flatnonzero(~np.isnan(values))
                    color = colormaps["tab10"](number % 10)
                    (lines[alignment],) = axes.plot(measured + 1, values[measured], linewidth=1, color=color)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_xlabel("step", fontsize=7)
        axes.tick_params(labelsize=7)
    for axes in panels[len(names) :]:
        axes.axis("off")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=6, fontsize=8)
    save_figure(path, figure)


def plot_precision_recall(path: Path, scores, ways=None) -> None:
    """Precision against recall, a panel per extractor: a dot per set, a colour per model, hollow with guidance.

    A line leads through the base's temperatures: what only sharpens moves along it, what improves leaves it. `scores`
    is the table of stage `score`. `ways` has its columns and `steps`: dotted lines show how each of its models came
    where it is.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    extractors, models = list(scores["extractor"].unique()), list(scores["model"].unique())
    colors = dict(zip(models, (colormaps["tab10"](i) for i in range(10)), strict=False))
    figure = Figure(figsize=(5.2 * len(extractors), 5.0), layout="constrained")
    for axes, extractor in zip(np.atleast_1d(figure.subplots(1, len(extractors))), extractors, strict=True):
        part = scores[scores["extractor"] == extractor]
        for (model, guidance), group in part.groupby(["model", "guidance_scale"], sort=False):
            plain = guidance == 1.0
            label, face = (model, colors[model]) if plain else (f"{model}, guidance {guidance}", "none")
            axes.scatter(group["recall"], group["precision"], s=14, label=label, color=face, edgecolors=[colors[model]])
            means = group.groupby("temperature")[["recall", "precision"]].mean().sort_index()
            if len(means) > 1:
                axes.plot(means["recall"], means["precision"], linewidth=1, color=colors[model])
                for temperature, (recall, precision) in means.iloc[[0, -1]].iterrows():
                    axes.annotate(f"T {temperature}", (recall, precision), (4, 4), **BESIDE, fontsize=8)
        if ways is not None:
            for model, way in ways[ways["extractor"] == extractor].groupby("model", sort=False):
                axes.plot(way["recall"], way["precision"], ":", marker=".", markersize=4, color=colors[model])
                for steps, recall, precision in way[["steps", "recall", "precision"]].to_numpy()[1:-1]:
                    axes.annotate(
                        f"{steps:.0f}", (recall, precision), (3, -8), **BESIDE, fontsize=6, color=colors[model]
                    )
        axes.set(title=extractor, xlabel="recall", ylabel="precision")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7)
    save_figure(path, figure)


def plot_densities(path: Path, points: Mapping[str, np.ndarray], share: float) -> None:
    """Kernel density of sets of points [N, 2], one panel per set, the set "real" in grey behind each (paper, figure 1).

    `share` is the share of the real variance that the two components hold.
    """
    from matplotlib.figure import Figure
    from scipy.stats import gaussian_kde

    low, high = np.quantile(points["real"], [0.002, 0.998], axis=0)
    low, high = low - 0.2 * (high - low), high + 0.2 * (high - low)
    x, y = np.meshgrid(*(np.linspace(low[i], high[i], 60) for i in range(2)))
    density = {name: gaussian_kde(p.T)(np.stack([x.ravel(), y.ravel()])).reshape(x.shape) for name, p in points.items()}
    levels = density["real"].max() * np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    models = [name for name in points if name != "real"]
    figure = Figure(figsize=(2.9 * len(models), 3.1), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(models))), models, strict=True):
        axes.contourf(x, y, density["real"], levels=[*levels, density["real"].max()], cmap="Greys", alpha=0.6)
        axes.scatter(*points[name].T, s=1, color="tab:blue", alpha=0.3)
        axes.contour(x, y, density[name], levels=levels, colors="tab:blue", linewidths=0.9)
        axes.set(title=name, xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
    figure.suptitle(f"Real images grey; two principal components hold {share:.0%} of their variance", fontsize=9)
    save_figure(path, figure)
