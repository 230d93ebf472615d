"""The report as one HTML file that needs no network: scores, curves, and a browser of samples and reconstructions.

The numbers are those of `reports/tables`, the figures those of `reports/figures`. Images are in sheets, one a seed and
row, with one class, or prompt, a row of the sheet.
"""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pipelines.config.params import Params, short_name
from pipelines.config.paths import FIGURES, TABLES
from pipelines.config.variant import Variant, variants_of
from pipelines.frame.grids import tile
from pipelines.frame.inputs import open_prompts, open_samples, open_split, open_subset, open_tokenizer
from pipelines.reporting.statistics import LOWER_IS_BETTER
from pipelines.reporting.tables import Table
from pipelines.variants.score_files import SCORE_TITLES
from vapi_core.alignment.reward import ReconstructionReward
from vapi_core.data.images import to_uint8
from vapi_core.errors import FileError
from vapi_core.files import atomic_path

TEMPLATE = Path(__file__).with_name("html_page.html")
CLASSES, COLUMNS = 20, 10  # shown: the first classes or prompts, and so many images of each
LARGEST_SIDE, SHOWN_SIDE = 128, 64  # pixels: images are made smaller, and small ones are shown enlarged
FIGURES_SHOWN = ("precision-recall", "curves")
SCORES = ("fid", "accuracy", "overall", "precision", "recall")


def write_page(path: Path, table: Table, params: Params, reward: ReconstructionReward, device: torch.device) -> None:
    """Writes the page of a table whose stage has run.

    Raises:
        FileError: something that the stage made is missing.
    """
    variants = variants_of(params, *table.rows)
    classes = names_of_classes(params)
    content = {
        "size": side_of(params),
        "zoom": max(1, SHOWN_SIDE // side_of(params)),
        "classes": classes,
        "seeds": list(params.align.seeds),
        "samples": [row for variant in variants for row in samples_of(variant, table, params, len(classes))],
        "pairs": reconstructions(params, reward, device, len(classes)),
        **scores_of(table),
    }
    figures = {name.replace("-", "_"): picture(FIGURES / table.name / f"{name}.png") for name in FIGURES_SHOWN}
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=table.title,
        profile=params.profile,
        seeds=len(params.align.seeds),
        label="class" if params.task == "c2i" else "prompt",
        data=json.dumps(content).replace("</", "<\\/"),  # a prompt may not end the script
        **figures,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def scores_of(table: Table) -> dict[str, Any]:
    """Columns and rows of the table of scores, without guidance."""
    path = TABLES / table.name / "summary.csv"
    if not path.is_file():
        raise FileError(path, "the file is missing.", "To make it, run `dvc repro report`.")
    summary = pd.read_csv(path)
    summary = summary[summary["guidance_scale"] == 1.0]
    reference = summary["reference"].iloc[0]
    summary = summary[summary["reference"] == reference]
    names = list(dict.fromkeys(summary["row"]))
    columns, cells = [], []
    for extractor, part in summary.groupby("extractor", sort=False):
        part = part.set_index("row").reindex(names)
        for score in SCORES:
            if score in part and part[score].notna().any():
                lower = score in LOWER_IS_BETTER
                best = part[score].idxmin() if lower else part[score].idxmax()
                direction = "lower" if lower else "higher"
                columns.append(
                    {"title": f"{SCORE_TITLES[score]}, {short_name(str(extractor))} ({direction} is better)"}
                )
                cells.append([cell_of(part.loc[name], score, name == best) for name in names])
    rows = [
        {"name": table.label(name), "cells": list(row)}
        for name, row in zip(names, zip(*cells, strict=True), strict=True)
    ]
    return {"columns": columns, "rows": rows}


def cell_of(row: pd.Series, score: str, best: bool) -> dict[str, Any] | None:
    """A mean with its interval, as text."""
    if pd.isna(row[score]):
        return None
    low, high = row[f"{score}_low"], row[f"{score}_high"]
    return {"mean": f"{row[score]:.4g}", "interval": f"{low:.3g} to {high:.3g}", "best": bool(best)}


def names_of_classes(params: Params) -> list[str]:
    """The first classes, or prompts."""
    names = open_subset().classes if params.task == "c2i" else [prompt.text for prompt in open_prompts()]
    return [str(name) for name in names[:CLASSES]]


def side_of(params: Params) -> int:
    """Pixels of a side of an image of a sheet."""
    return min(params.sample.save_size or params.subset.image_size, LARGEST_SIDE)


def samples_of(variant: Variant, table: Table, params: Params, classes: int) -> list[dict[str, Any]]:
    """A row of the browser for each setting of a variant: its sheets by seed."""
    rows = []
    for config in variant.samplings:
        sets = [s for s in variant.sets if s.config == config and s.steps is None]
        name = table.label(table.row(variant, config.temperature, params.sample.temperature))
        guidance = "" if config.guidance_scale == 1.0 else f", guidance {config.guidance_scale:g}"
        sheets = {}
        for image_set in sets:
            images, labels = open_samples(image_set.directory)
            sheets[str(image_set.seed)] = sheet(images, by_class(labels, classes), side_of(params))
        rows.append({"name": f"{name}{guidance}", "sheets": sheets})
    return rows


def by_class(labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """The first items of each of the first classes."""
    return [np.flatnonzero(labels == label)[:COLUMNS] for label in range(classes)]


def reconstructions(params: Params, reward: ReconstructionReward, device: torch.device, classes: int) -> dict[str, Any]:
    """Held-out images beside what the tokenizer makes of them, and the reward of that. Of prompts there are none."""
    split = params.score.reference_splits[0]
    data, tokenizer = open_split(split, device, params.generator.family), open_tokenizer(device)
    labels = np.asarray(open_subset().split(split)[1])
    chosen = by_class(labels, classes) if params.task == "c2i" else [np.arange(min(COLUMNS, len(data)))]
    items = np.concatenate(chosen)
    tokens, _ = data.batch(items)
    rewards, _ = reward(tokens[:, None], data.reference_images(items))
    with torch.inference_mode():
        decoded = to_uint8(tokenizer.decode(tokens))
    places = iter(range(len(items)))
    rows = [np.array([next(places) for _ in row], dtype=int) for row in chosen]
    told = [
        {"class": label, "column": column, "reward": round(float(rewards[place, 0]), 6)}
        for label, row in enumerate(rows)
        for column, place in enumerate(row)
    ]
    originals = np.asarray(data.images[items])
    return {
        "items": told,
        "originals": sheet(originals, rows, side_of(params)),
        "reconstructions": sheet(decoded, rows, side_of(params)),
    }


def sheet(images: np.ndarray, rows: Sequence[np.ndarray], side: int) -> dict[str, Any]:
    """One picture of these items of images [N, H, W, 3], a row each; white where a row is short."""
    columns = max(map(len, rows))
    canvas = np.full((len(rows), columns, side, side, 3), 255, np.uint8)
    for place, items in zip(canvas, rows, strict=True):
        for column, item in enumerate(items):
            place[column] = resized(images[item], side)
    content = io.BytesIO()
    Image.fromarray(tile(canvas.reshape(-1, side, side, 3), columns)).save(content, "PNG", optimize=True)
    return {"columns": columns, "url": inlined(content.getvalue())}


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """An image [H, W, 3] at the size of a sheet's."""
    return image if image.shape[0] == side else np.asarray(Image.fromarray(image).resize((side, side)))


def picture(path: Path) -> str:
    """A figure, inlined."""
    if not path.is_file():
        raise FileError(path, "the figure is missing.", "To make it, run `dvc repro report`.")
    return inlined(path.read_bytes())


def inlined(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
