"""The user's command: GenEval of any folder of images, without training anything and without MLflow.

    python -m pipelines.commands.geneval FOLDER [--detector PATH] [--colors PATH]
    python -m pipelines.commands.geneval results.jsonl

Results are appended to FOLDER/results.jsonl, which the official `summary_scores.py` reads too; the scores go to
FOLDER/scores.json. An interrupted run goes on where it was. Given a file of results, ours or the official script's, only
their scores are computed. Exit code 1 if anything could not be scored.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.frame.launch import one_message
from pipelines.frame.progress import Advance, progress
from vapi_core.data.image_files import read_rgb
from vapi_core.errors import FileError, ParameterError, quoted, shortened
from vapi_core.files import write_json
from vapi_core.models.clip import load_clip
from vapi_core.scoring.geneval.detectors import CHECKED_IMAGES, COCO_CLASSES, HUB_DETECTOR, ClipColors, Mask2Former
from vapi_core.scoring.geneval.folder import GenEvalResult, Sample, read_folder, read_results
from vapi_core.scoring.geneval.rules import GenEvalOptions
from vapi_core.scoring.geneval.run import Evaluation, Judge, evaluate_folder
from vapi_core.scoring.geneval.scores import json_ready, official_text, score_table, summarize
from vapi_core.scoring.preference import CLIP_ARCHITECTURE

LISTED = 10


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.commands.geneval", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="images in GenEval's layout, or a results.jsonl")
    parser.add_argument(
        "--detector", default=HUB_DETECTOR, help=f"Mask2Former: a folder or a cached hub id (default {HUB_DETECTOR})"
    )
    parser.add_argument("--colors", metavar="PATH", help="CLIP ViT-L/14: a file or a folder (default: the hub cache)")
    parser.add_argument("--results", type=Path, help="default: FOLDER/results.jsonl")
    parser.add_argument("--check-images", type=Path, metavar="FOLDER", help="photographs to check the detector on")
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE", help="as the official script's")
    parser.add_argument("--batch-size", type=positive, default=8)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args(arguments)


def parse_options(given: list[str]) -> GenEvalOptions:
    """The official script's options, `name=value`.

    Raises:
        ParameterError: an unknown name, or a value that is no number or cannot work.
    """
    official = asdict(GenEvalOptions())
    values: dict[str, Any] = {}
    for item in given:
        name, _, text = item.partition("=")
        if name not in official:
            raise ParameterError("--options", f"there is no option {quoted(name)}; there are {', '.join(official)}.")
        kind = type(official[name])
        try:
            values[name] = text == "1" if kind is bool else kind(text)
        except ValueError:
            raise ParameterError("--options", f"{name}={shortened(text)} is not a number.") from None
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


def run(arguments: argparse.Namespace) -> Evaluation:
    """Evaluates the folder and writes its results and scores."""
    folder, options, device = arguments.folder, parse_options(arguments.options), choose_device(arguments.device)
    if folder.is_file():
        results = read_results(folder)
        write_scores(folder, results)
        return Evaluation(results, [], [])
    samples = read_folder(folder, COCO_CLASSES).samples  # before the models, which take their time
    detector = Mask2Former(arguments.detector, device=device)
    colors = ClipColors(load_clip(CLIP_ARCHITECTURE, arguments.colors, device))
    detector.check(check_images(arguments.check_images, samples), options.threshold)
    judge = Judge(detector, colors, colors.name, COCO_CLASSES, options)
    results_path = arguments.results or folder / "results.jsonl"
    with counted("geneval") as log:
        evaluation = evaluate_folder(folder, results_path, judge, arguments.batch_size, log)
    if not evaluation.results:
        raise FileError(folder, f"none of its {len(samples)} images can be read.")
    write_scores(results_path, evaluation.results)
    return evaluation


def write_scores(results_path: Path, results: list[GenEvalResult]) -> None:
    """Writes the scores of results beside their file, and prints them, as the official script does and as a table."""
    scores = summarize(results)
    write_json(results_path.with_name("scores.json"), json_ready(scores))
    print(official_text(scores))
    print(score_table(scores))


@one_message
def main(arguments: list[str]) -> int:
    """Runs the command; 1 on an error of the user's or where images could not be scored."""
    evaluation = run(parse(arguments))
    return exit_code(len(evaluation.results), evaluation.missing, evaluation.unreadable)


def choose_device(name: str) -> str:
    """The device to use. Raises ParameterError where there is no such device."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ParameterError("--device", f"it is {name}, but torch sees no GPU here; choose auto or cpu.")
    try:
        return str(torch.device(name))
    except RuntimeError:
        raise ParameterError("--device", f"torch knows no device {quoted(name)}.") from None


def positive(text: str) -> int:
    """A number of a command line that must be at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


@contextmanager
def counted(description: str) -> Iterator[Callable[[int, int], None]]:
    """Progress for evaluations that tell how many images are done of how many; those done at first took no time."""
    with ExitStack() as stack:
        advance: Advance | None = None
        done = 0

        def log(now: int, total: int) -> None:
            nonlocal advance, done
            if advance is None:
                advance = stack.enter_context(progress(description, total - now, "images"))
            else:
                advance(now - done)
            done = now

        yield log


def exit_code(scored: int, missing: Sequence[Path], unreadable: Sequence[FileError]) -> int:
    """0 if all images were scored; else 1, having named and counted those that were not."""
    problems = [*(f"{path}: the image is missing." for path in missing), *map(str, unreadable)]
    if not problems:
        return 0
    count = f"{len(missing)} images are missing, {len(unreadable)} cannot be read"
    print(f"error: {count}; the scores are those of the other {scored}.", file=sys.stderr)
    for problem in problems[:LISTED]:
        print(f"  {problem}", file=sys.stderr)
    if len(problems) > LISTED:
        print(f"  and {len(problems) - LISTED} more", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
