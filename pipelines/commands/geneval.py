"""GenEval of any folder of images, without training anything and without MLflow: `vapi geneval`.

Results are appended to FOLDER/results.jsonl, which the official `summary_scores.py` reads too; the scores go to
FOLDER/scores.json. An interrupted run goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.commands.device import choose_device
from pipelines.commands.evaluation import counted, exit_code
from vapi_core.data.image_files import read_rgb
from vapi_core.errors import FileError, ParameterError, quoted, shortened
from vapi_core.files import write_json
from vapi_core.models.clip import load_clip
from vapi_core.scoring.geneval.detectors import CHECKED_IMAGES, COCO_CLASSES, HUB_DETECTOR, ClipColors, Mask2Former
from vapi_core.scoring.geneval.folder import GenEvalResult, Sample, read_folder, read_results
from vapi_core.scoring.geneval.rules import GenEvalOptions
from vapi_core.scoring.geneval.run import Judge, evaluate_folder
from vapi_core.scoring.geneval.scores import json_ready, official_text, score_table, summarize
from vapi_core.scoring.preference import CLIP_ARCHITECTURE


def parse_options(given: Sequence[str]) -> GenEvalOptions:
    """The official script's options, `name=value`.

    Raises:
        ParameterError: an unknown name, or a value that is no number or cannot work.
    """
    official = asdict(GenEvalOptions())
    values: dict[str, Any] = {}
    for item in given:
        name, _, text = item.partition("=")
        if name not in official:
            raise ParameterError("--option", f"there is no option {quoted(name)}; there are {', '.join(official)}.")
        kind = type(official[name])
        try:
            values[name] = text == "1" if kind is bool else kind(text)
        except ValueError:
            raise ParameterError("--option", f"{name}={shortened(text)} is not a number.") from None
    return GenEvalOptions(**values)


def check_images(folder: Path | None, samples: list[Sample]) -> list[Image.Image]:
    """Images to check the detector on: photographs where a folder of them is given, else some of the samples."""
    if folder is not None:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
        if not paths:
            raise FileError(folder, "there is no image in it to check the detector on.")
    else:
        paths = [sample.path for sample in samples]
    images = []
    for path in paths[:: max(1, len(paths) // CHECKED_IMAGES)]:
        try:
            images.append(read_rgb(path))
        except FileError:
            continue  # the evaluation names it
    if not images:
        raise FileError(paths[0], "neither this nor any other image can be read.")
    return images


def evaluate(
    folder: Path,
    *,
    detector: str | None = None,
    colors: str | None = None,
    results: Path | None = None,
    photographs: Path | None = None,
    options: Sequence[str] = (),
    batch_size: int = 8,
    device: str = "auto",
) -> int:
    """Evaluates the folder and writes its results and scores; returns the exit code.

    Args:
        folder: images in GenEval's layout, or a file of results, of which only the scores are computed.
        detector: Mask2Former, a folder or a cached hub id; None: the official one.
        colors: CLIP ViT-L/14, a file or a folder; None: the hub's cache.
        results: None: FOLDER/results.jsonl.
        photographs: a folder of images to check the detector on; None: some of those that are scored.
        options: those of the official script, `name=value`.

    Raises:
        FileError: folder, images or models are missing or damaged.
        ParameterError: an option or the device cannot work.
    """
    chosen, used = parse_options(options), choose_device(device)
    if folder.is_file():
        write_scores(folder, read_results(folder))
        return 0
    samples = read_folder(folder, COCO_CLASSES).samples  # before the models, which take their time
    mask2former = Mask2Former(detector or HUB_DETECTOR, device=used)
    clip = ClipColors(load_clip(CLIP_ARCHITECTURE, colors, used))
    mask2former.check(check_images(photographs, samples), chosen.threshold)
    judge = Judge(mask2former, clip, clip.name, COCO_CLASSES, chosen)
    results_path = results or folder / "results.jsonl"
    with counted("geneval") as log:
        evaluation = evaluate_folder(folder, results_path, judge, batch_size, log)
    if not evaluation.results:
        raise FileError(folder, f"none of its {len(samples)} images can be read.")
    write_scores(results_path, evaluation.results)
    return exit_code(len(evaluation.results), evaluation.missing, evaluation.unreadable)


def write_scores(results_path: Path, results: list[GenEvalResult]) -> None:
    """Writes the scores of results beside their file, and prints them, as the official script does and as a table."""
    scores = summarize(results)
    write_json(results_path.with_name("scores.json"), json_ready(scores))
    print(official_text(scores))
    print(score_table(scores))
