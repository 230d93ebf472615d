"""CLIP score and HPSv2 of images and the prompts they were made from.

Both are the cosine of the angle between image and text under a CLIP model, without a factor: OpenAI's ViT-L/14 for the
CLIP score, a ViT-H/14 that was trained on human choices for HPSv2 (Wu et al. 2023, arXiv:2306.09341). Papers sometimes
print 100 times as much.

Departures from the official HPSv2: float32 instead of automatic mixed precision, and an image that is not square is
padded by open_clip's own rule.
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vapi_core.data.image_files import read_rgb
from vapi_core.errors import FileError, ParameterError, quoted, shortened
from vapi_core.files import parse_json, read_text, split_lines
from vapi_core.scoring.clip import Clip, hub_file, load_clip
from vapi_core.scoring.geneval_folder import Prompt, read_folder
from vapi_core.scoring.statistics import bootstrap_interval, mean_and_standard_error

CLIP_ARCHITECTURE, HPS_ARCHITECTURE = "ViT-L-14-quickgelu", "ViT-H-14"
HPS_REPOSITORY = "xswu/HPSv2"
HPS_FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
TEXT_COLUMNS, CATEGORY_COLUMNS = ("prompts", "prompt", "caption", "text"), ("category", "categories", "tag")


def load_preference_model(
    score: str, weights: Path | str | None = None, device: torch.device | str = "cpu", hps_version: str = "2.0"
) -> Clip:
    """The model of a score.

    Args:
        score: "clip" or "hpsv2".
        weights: a checkpoint file or an open_clip folder; None for the hub cache.
        hps_version: which weights of HPSv2 to take from the hub cache; papers before 2024 used 2.0.

    Raises:
        ParameterError: no such score or version.
        FileError: the weights are missing or of another architecture.
    """
    if score == "clip":
        return load_clip(CLIP_ARCHITECTURE, weights, device)
    if score != "hpsv2":
        raise ParameterError("score", f"there is no {quoted(score)}; choose clip or hpsv2.")
    if hps_version not in HPS_FILES:
        raise ParameterError("hps_version", f"there is no {hps_version}; choose {' or '.join(HPS_FILES)}.")
    if weights is None:
        weights = hub_file(HPS_REPOSITORY, [HPS_FILES[hps_version]])
    return load_clip(HPS_ARCHITECTURE, weights, device, resize_mode="longest")


def preference_scores(clip: Clip, images: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
    """Cosine of every image with its own text, float32 [N]."""
    assert len(images) == len(texts), "a text for every image"
    return (clip.encode_images(images) * clip.encode_texts(texts)).sum(-1).cpu().numpy()


@dataclass(frozen=True)
class PreferenceScore:
    """A score of a folder of images. The unit of the uncertainty is the prompt."""

    model: str
    mean: float  # over images
    standard_error: float
    low: float  # bootstrap interval of 95 %
    high: float
    categories: dict[str, float]  # mean per category of prompts, where they have one
    images: int
    prompts: int
    missing: list[Path]
    unreadable: list[FileError]

    def json_ready(self) -> dict[str, Any]:
        """For a JSON file, which knows neither NaN nor paths."""
        problems = {
            "missing": [str(path) for path in self.missing],
            "unreadable": [str(e.path) for e in self.unreadable],
        }
        error = None if math.isnan(self.standard_error) else self.standard_error
        return vars(self) | problems | {"standard_error": error}


def score_folder(
    folder: Path | str,
    clip: Clip,
    batch_size: int = 32,
    seed: int = 0,
    log: Callable[[int, int], None] = lambda done, total: None,
) -> PreferenceScore:
    """Scores all images of a folder laid out as GenEval's.

    Args:
        log: called with the number of images done, at the start and after each batch, and of all images.

    Raises:
        FileError: the folder is wrong, or none of its images can be read.
    """
    samples = read_folder(folder, classes=None)
    unreadable: list[FileError] = []
    scores: list[float] = []
    owners: list[tuple[str, str]] = []  # category and prompt folder of each score
    log(0, len(samples.samples))
    for start in range(0, len(samples.samples), batch_size):
        images, texts = [], []
        for sample in samples.samples[start : start + batch_size]:
            try:
                images.append(read_rgb(sample.path))
            except FileError as error:
                unreadable.append(error)
                continue
            texts.append(sample.prompt.text)
            owners.append((sample.prompt.metadata.get("tag", ""), sample.place[0]))
        if images:
            scores += preference_scores(clip, images, texts).tolist()
        log(len(scores) + len(unreadable), len(samples.samples))
    if not scores:
        raise FileError(folder, f"none of its {len(unreadable)} images can be read.")
    values = np.array(scores)
    prompts = [float(values[[owner == other for other in owners]].mean()) for owner in dict.fromkeys(owners)]
    _, standard_error = mean_and_standard_error(prompts)
    low, high = bootstrap_interval(prompts, seed=seed)
    categories = {
        category: float(values[[category == other for other, _ in owners]].mean())
        for category in dict.fromkeys(category for category, _ in owners)
        if category
    }
    return PreferenceScore(
        clip.name,
        float(values.mean()),
        standard_error,
        low,
        high,
        categories,
        len(scores),
        len(prompts),
        samples.missing,
        unreadable,
    )


def read_prompt_list(path: Path | str) -> list[Prompt]:
    """Prompts from a DrawBench-style file, for `geneval_folder.write_prompts`.

    A `.csv` or `.tsv` has a column "Prompts" (or prompt, caption, text) and may have "Category"; a `.json` is a list of
    texts, or of objects with such fields; any other file has one prompt a line.

    Raises:
        FileError: the file is missing, has no such column or no prompt, or an empty one, whose row is named.
    """
    path = Path(path)
    text = read_text(path)
    try:
        rows = _rows(path.suffix.lower(), text)
    except (ValueError, csv.Error) as error:
        raise FileError(path, f"no prompts can be read from it ({error}).") from None
    empty = [number for number, row in enumerate(rows, 1) if not row["prompt"]]
    if empty or not rows:
        problem = (
            f"{len(empty)} prompts are empty, that of row {empty[0]} first." if empty else "there is no prompt in it."
        )
        raise FileError(path, problem)
    return [Prompt(row) for row in rows]


def _rows(suffix: str, text: str) -> list[dict[str, Any]]:
    """Metadata of each prompt: "prompt", and "tag" if it has a category. Raises ValueError."""
    if suffix == ".json":
        items = parse_json(text)
        if not isinstance(items, list):
            raise ValueError("it is not a list")
        return [_row({"prompt": item} if isinstance(item, str) else item) for item in items]
    if suffix in (".csv", ".tsv"):
        lines = io.StringIO(text, newline="")
        return [_row(row) for row in csv.DictReader(lines, delimiter="\t" if suffix == ".tsv" else ",")]
    return [{"prompt": line.strip()} for line in split_lines(text) if line.strip()]


def _row(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"{quoted(item)} is neither a text nor an object")
    fields = {str(name).strip().lower(): value for name, value in item.items()}
    column = next((name for name in TEXT_COLUMNS if name in fields), None)
    if column is None:
        raise ValueError(f"there is no column {', '.join(TEXT_COLUMNS)}, but {shortened(', '.join(fields))}")
    category = next((fields[name] for name in CATEGORY_COLUMNS if fields.get(name)), None)
    if any(not isinstance(value, str | None) for value in (fields[column], category)):
        raise ValueError(f"{quoted(item)} holds something else than text as prompt or category")
    row = {"prompt": (fields[column] or "").strip()}
    return row | ({"tag": category.strip()} if category else {})
