"""A sweep as one HTML file that needs no network: its cells over ξ and β, coloured by score, which open their samples.

There is a map for each regularizer, and for each reward and credit where these vary. Where most combinations of ξ and β
are there it is a table; a search's cells, which are scattered, stand where their values are.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from PIL import Image

from pipelines.reporting.grid_figures import cell_name, is_table, lower_is_better, ranking, titled
from pipelines.reporting.html_page import inlined
from pipelines.variants.cells import FinishedCell, read_grids
from pipelines.variants.sweep import AXES
from vapi_core.files import atomic_path
from vapi_core.sampling.sampler import SamplingConfig

TEMPLATE = Path(__file__).with_name("sweep_page.html")
LARGEST_SIDE = 700  # pixels of a picture; a larger one is made smaller, and a JPEG
SEEDS_SHOWN = 3  # of a cell
POINT = 0.08  # size of a scattered cell, as a part of the map
X, Y = "noise_ratio", "regularizer_weight"


@dataclass(frozen=True)
class Place:
    """Where a cell stands in its map: parts of the width and of the height, from the left and from below."""

    experiment: str
    left: float
    bottom: float
    width: float
    height: float


def write_sweep_page(
    path: Path, title: str, grid: pd.DataFrame, finished: list[FinishedCell], base: FinishedCell | None
) -> None:
    """Writes the page of cells that are finished, of which there is one at least.

    Args:
        grid: their scores, as `grid.grid_of` has them.
        base: what they build on; None where its scores cannot be read.
    """
    config, seeds = finished[0].variant.samplings[0], finished[0].variant.seeds[:SEEDS_SHOWN]
    main = f"fid/{finished[0].main}"
    scores = [main, *(name for name in grid.columns if "/" in name and name != main and grid[name].notna().all())]
    rows = {cell.experiment: grid[grid["experiment"] == cell.experiment] for cell in finished}
    content = {
        "scores": [{"name": name, "title": titled(name), "lower": lower_is_better(name)} for name in scores],
        "best": {name: ranking(grid, name)[0] for name in scores},
        "maps": [asdict(drawn) for drawn in maps(grid)],
        "cells": {
            cell.experiment: {
                "name": cell_name(rows[cell.experiment].iloc[0]),
                "scores": {name: rows[cell.experiment][name].tolist() for name in scores},
                "seeds": [str(seed) for seed in cell.variant.seeds],
                "pictures": pictures(cell, config, seeds),
            }
            for cell in finished
        },
        "base": None
        if base is None
        else {"scores": scores_of(base, scores), "pictures": pictures(base, config, seeds)},
    }
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=title, count=len(finished), data=json.dumps(content).replace("</", "<\\/")
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Map:
    """The cells of one regularizer, reward and credit. Ticks are labels with where they stand."""

    title: str
    places: list[Place]
    columns: list[tuple[str, float]]
    rows: list[tuple[str, float]]


def maps(grid: pd.DataFrame) -> list[Map]:
    """A map for each combination of what is neither ξ nor β, named by what varies, the regularizer always."""
    others = [axis for axis in AXES if axis not in (X, Y)]
    named = [axis for axis in others if axis == "regularizer" or grid[axis].nunique() > 1]
    cells = grid.drop_duplicates("experiment")
    return [
        map_of(" · ".join(str(part.iloc[0][axis]) for axis in named), part)
        for _, part in cells.groupby(others, sort=False)
    ]


def map_of(title: str, cells: pd.DataFrame) -> Map:
    """Where the cells stand: in a table where half of its fields are filled, otherwise by their values."""
    columns, rows = (sorted(cells[axis].unique()) for axis in (X, Y))
    if is_table(cells, Y, X):
        width, height = 1 / len(columns), 1 / len(rows)
        across = {value: i * width for i, value in enumerate(columns)}
        up = {value: i * height for i, value in enumerate(rows)}
        ticks = [(f"{value:g}", across[value] + width / 2) for value in columns]
        marks = [(f"{value:g}", up[value] + height / 2) for value in rows]
    else:
        width = height = POINT
        across, up = spread(columns), spread(rows, log=True)
        ticks = [(f"{value:g}", across[value] + POINT / 2) for value in (columns[0], columns[-1])]
        marks = [(f"{value:g}", up[value] + POINT / 2) for value in (rows[0], rows[-1])]
    zipped = zip(cells["experiment"], cells[X], cells[Y], strict=True)
    return Map(title, [Place(name, across[x], up[y], width, height) for name, x, y in zipped], ticks, marks)


def spread(values: Sequence[float], log: bool = False) -> dict[float, float]:
    """Sorted values -> where they stand between 0 and 1, with room for a point; log scale if all are above 0."""
    scaled = np.log(values) if log and values[0] > 0 else np.asarray(values, float)
    length = scaled[-1] - scaled[0]
    parts = (scaled - scaled[0]) / length if length > 0 else np.full(len(values), 0.5)
    return dict(zip(values, map(float, parts * (1 - POINT)), strict=True))


def scores_of(cell: FinishedCell, names: Sequence[str]) -> dict[str, float]:
    """Mean of these scores over seeds, as far as it has them."""
    found = pd.DataFrame(list(cell.scores.values())).mean().to_dict()
    return {name: float(found[f"score/{name}"]) for name in names if f"score/{name}" in found}


def pictures(cell: FinishedCell, config: SamplingConfig, seeds: Sequence[int]) -> dict[str, str]:
    """Seed -> the grid of its samples, inlined; without those that DVC's cache has lost."""
    return {str(seed): shrunk(png) for seed, png in read_grids(cell, config, seeds).items()}


def shrunk(png: bytes) -> str:
    """A picture that is not too large for a page with many."""
    picture = Image.open(io.BytesIO(png))
    if max(picture.size) <= LARGEST_SIDE:
        return inlined(png)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    content = io.BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=85)
    return inlined(content.getvalue(), "jpeg")
