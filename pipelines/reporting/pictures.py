"""The pictures of a table's page."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipelines.config.params import Params
from pipelines.config.paths import CURVES, FIGURES
from pipelines.config.variant import BASE, ImageSet, Variant
from pipelines.frame.inputs import open_samples, open_subset, open_tokenizer
from pipelines.reporting.charts import draw_bars, draw_lines, panels, plot_samples
from pipelines.reporting.evidence import Evidence
from pipelines.reporting.figures import plot_curves, plot_densities, plot_precision_recall, save_figure, side_by_side
from pipelines.reporting.tables import Picture
from pipelines.variants.drawing import grid_items
from pipelines.variants.score_files import SCORE_TITLES
from vapi_core.alignment.va_pi import VaPiConfig
from vapi_core.data.images import images_of_a_pass, resize_bicubic, to_tensor

CURVE_NAMES = ["reward", "reward_mse", "reward_perceptual", "reward_spread", "ce", "kl", "entropy", "gradient_norm"]
SHOWN_OF_A_ROW = 10


def draw_pictures(evidence: Evidence, device: torch.device) -> list[Path]:
    """Draws the pictures of a page; returns their files."""
    folder = FIGURES / evidence.table.name
    made = []
    for name in evidence.table.pictures:
        if name in DRAWN:
            made.append(folder / f"{name}.png")
            DRAWN[name](made[-1], evidence, device)
    return made


def main_set(variant: Variant) -> ImageSet:
    """The first seed's set at the main setting."""
    return variant.sets[0]


def draw_samples(path: Path, evidence: Evidence, device: torch.device) -> None:
    """The same streams in every row: grids side by side, or for many rows ten images each under each other."""
    table, main = evidence.table, evidence.params.sample.temperature
    sets = {table.row(v, main, main): main_set(v) for v in evidence.variants if main_set(v).config.temperature == main}
    if table.axis is not None:
        images = {table.label(row): open_samples(s.directory)[0] for row, s in sets.items()}
        plot_samples(path, {label: array[row_items(evidence.params, len(array))] for label, array in images.items()})
        return
    if (control := best_control(evidence)) is not None:
        sets |= control
    images = {title: open_samples(s.directory)[0] for title, s in sets.items()}
    grids = {title: array[grid_items(evidence.params, len(array))] for title, array in images.items()}
    side_by_side(path, grids, columns=10)


def row_items(params: Params, count: int) -> np.ndarray:
    """Which images of a set stand in its row: the first ones, of text to image some of all prompts."""
    items = grid_items(params, count)
    if params.task == "c2i":
        return items[:SHOWN_OF_A_ROW]
    return items[np.linspace(0, len(items) - 1, min(SHOWN_OF_A_ROW, len(items))).astype(int)]


def best_control(evidence: Evidence) -> dict[str, ImageSet] | None:
    """The base at the other temperature that has the lowest FID without guidance, under the last extractor."""
    summary, main = evidence.summary, evidence.params.sample.temperature
    extractor = evidence.params.score.extractors[-1]
    others = summary[(summary["temperature"] != main) & (summary["extractor"] == extractor)]
    if others.empty:
        return None
    best = others.sort_values("fid").iloc[0]
    for variant in evidence.variants:
        for image_set in variant.sets:
            if image_set.config.temperature == best["temperature"]:
                return {str(best["row"]): image_set}
    return None


def draw_curves(path: Path, evidence: Evidence, device: torch.device) -> None:
    curves = {
        variant.name: [read_curves(file) for file in sorted((CURVES / variant.name).glob("*.csv"))]
        for variant in evidence.variants
        if variant.alignment is not None
    }
    plot_curves(path, curves, CURVE_NAMES)


def read_curves(path: Path) -> dict[str, np.ndarray]:
    """Metric -> values over steps; NaN where a step did not measure it."""
    return {str(name): column.to_numpy() for name, column in pd.read_csv(path).drop(columns="step").items()}


def draw_precision_recall(path: Path, evidence: Evidence, device: torch.device) -> None:
    scores = evidence.sets[evidence.sets["precision"].notna()]
    is_base = scores["row"].str.startswith(BASE)  # whatever its temperature
    named = scores.assign(model=scores["row"].where(~is_base, BASE))
    plot_precision_recall(path, named[named["steps"].isna()], ways(named, evidence))


def ways(scores: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
    """Scores of every alignment's first seed at step 0 (the base), at the steps that were kept, and at the end."""
    params = evidence.params
    ends = {v.name: v.alignment.optimization.steps for v in evidence.variants if v.alignment is not None}
    first = scores[(scores["seed"] == params.align.seeds[0]) & (scores["temperature"] == params.sample.temperature)]
    first = first[first["guidance_scale"] == 1.0]
    kept = first[first["steps"].notna()]["model"].unique()
    base = first[first["model"] == BASE].assign(steps=0)
    methods = first[first["model"].isin(kept)]
    methods = methods.assign(steps=methods["steps"].fillna(methods["variant"].map(ends)))
    return pd.concat([*(base.assign(model=model) for model in kept), methods]).sort_values("steps", kind="stable")


def draw_axis(path: Path, evidence: Evidence, device: torch.device) -> None:
    """The paper's numbers, then each of our scores, each in its own panel; extractors that see nothing are left out."""
    table, paper = evidence.table, evidence.table.paper or {}
    assert table.axis is not None
    published = pd.DataFrame.from_dict(paper, orient="index").rename_axis("row").reset_index()
    drawn = [("paper", name, published.rename(columns={name: "y"})) for name in published.columns if name != "row"]
    plain = evidence.summary[evidence.summary["guidance_scale"] == evidence.guidance]
    for score in table.scores:
        for extractor, part in plain[~plain["extractor"].isin(evidence.blind)].groupby("extractor", sort=False):
            if score in part and part[score].notna().all():
                error = part[f"{score}_high"] - part[score]  # its 95 % interval, to either side
                drawn.append((str(extractor), score, part.assign(y=part[score], error=error)))
    figure, axes = panels(len(drawn))
    for ax, (source, score, rows) in zip(axes, drawn, strict=True):
        draw_axis_panel(ax, evidence, rows if "error" in rows else rows.assign(error=np.nan))
        ax.set_title(f"{source}: {SCORE_TITLES[score]}", fontsize=9)
    save_figure(path, figure)


def draw_axis_panel(ax, evidence: Evidence, rows: pd.DataFrame) -> None:
    """One score over the axis: lines where rows stand at numbers, else bars. Rows beside the axis are left out."""
    table = evidence.table
    assert table.axis is not None
    base, placed = rows[rows["row"] == BASE], rows[rows["row"].isin(rows_on_axis(evidence))]
    points = [table.axis.point(row) for row in placed["row"]]
    if all(isinstance(x, float) for _, x in points):
        placed = placed.assign(line=[line for line, _ in points], x=[x for _, x in points]).sort_values("x")
        lines = {str(line): part for line, part in placed.groupby("line", sort=False)}
        draw_lines(ax, lines, log=table.axis.logarithmic)
        ax.set_xlabel(table.axis.title)
    else:
        order = [*(table.paper or {}), *placed["row"]]
        placed = placed.sort_values("row", key=lambda rows: rows.map(order.index))
        draw_bars(ax, placed.assign(x=[table.label(row) for row in placed["row"]]))
    if len(base):
        ax.axhline(base["y"].iloc[0], linestyle="--", color="grey", linewidth=1, label="base")
    ax.legend(fontsize=7)


def rows_on_axis(evidence: Evidence) -> set[str]:
    """Rows of alignments that have what the axis varies, and of the paper."""
    table = evidence.table
    ours = {
        table.row(variant, evidence.params.sample.temperature, evidence.params.sample.temperature)
        for variant in evidence.variants
        if variant.alignment is not None and isinstance(variant.alignment.config, VaPiConfig)
    }
    return (ours | set(table.paper or {})) - {BASE}


def draw_densities(path: Path, evidence: Evidence, device: torch.device) -> None:
    plot_densities(path, *project(embed_sets(evidence, device)))


def embed_sets(evidence: Evidence, device: torch.device) -> dict[str, np.ndarray]:
    """Encoder outputs [N, D] of held-out images and of one set of each row, at the main setting.

    The tokenizer's encoder is the one network here that neither scores nor rewards (unless `reward.embedding` does).
    """
    params, tokenizer = evidence.params, open_tokenizer(device)
    images = {"real": open_subset().split(params.score.reference_splits[0])[0]}
    for variant in evidence.variants:
        if main_set(variant).config.temperature == params.sample.temperature:
            images[variant.name] = open_samples(main_set(variant).directory)[0]
    size = params.sample.save_size or params.subset.image_size
    embedded = {}
    for name, pixels in images.items():
        batch = images_of_a_pass(pixels.shape[1])
        with torch.inference_mode():
            parts = [
                tokenizer.embed(at_size(to_tensor(pixels[i : i + batch], device), size))
                for i in range(0, len(pixels), batch)
            ]
        embedded[name] = torch.cat(parts).flatten(1).cpu().numpy()
    return embedded


def at_size(images: Tensor, size: int) -> Tensor:
    """Images [N, 3, H, W] at the size of the sampled ones."""
    return images if size == images.shape[-1] else resize_bicubic(images, size).clamp(-1, 1)


def project(embedded: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
    """Two principal components of the real images, of all sets [N, D], and the share of the real variance they hold."""
    real = embedded["real"]
    center = real.mean(0)
    _, singular, axes = np.linalg.svd(real - center, full_matrices=False)
    for axis in axes[:2]:  # the sign of a component is arbitrary
        axis *= np.sign(axis[np.abs(axis).argmax()])
    share = float(np.square(singular[:2]).sum() / np.square(singular).sum())
    return {name: (values - center) @ axes[:2].T for name, values in embedded.items()}, share


DRAWN: dict[Picture, Callable[[Path, Evidence, torch.device], None]] = {  # `reconstructions` is the tokenizer's own
    "samples": draw_samples,
    "curves": draw_curves,
    "precision-recall": draw_precision_recall,
    "axis": draw_axis,
    "densities": draw_densities,
}
