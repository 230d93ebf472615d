"""Scores a folder of images by GenEval: in batches, resumable, with nothing lost to an image that cannot be read."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from vapi_core.data.image_files import read_rgb
from vapi_core.errors import FileError
from vapi_core.files import sha256_file
from vapi_core.scoring.geneval import (
    TASKS,
    CropColors,
    Decision,
    Detections,
    FoundObjects,
    GenEvalOptions,
    decide,
    filter_detections,
    image_colors,
)
from vapi_core.scoring.geneval_folder import (
    GenEvalResult,
    Prompt,
    Sample,
    append_results,
    read_folder,
    read_results,
    write_results,
)


class Detector(Protocol):
    name: str  # with everything that changes what it finds

    def detect(self, images: Sequence[Image.Image], minimum_score: float) -> list[Detections]: ...


@dataclass(frozen=True)
class Judge:
    """All that decides over an image."""

    detector: Detector
    colors: CropColors
    colors_name: str
    classes: Sequence[str]
    options: GenEvalOptions = GenEvalOptions()
    tasks: Sequence[str] = TASKS

    @property
    def name(self) -> str:
        """Detector, color classifier and the options that are not the official ones, as every result states them."""
        official = GenEvalOptions()
        changed = [
            f"{f.name}={getattr(self.options, f.name)}"
            for f in dataclasses.fields(GenEvalOptions)
            if getattr(self.options, f.name) != getattr(official, f.name)
        ]
        return "; ".join([self.detector.name, f"colors by {self.colors_name}", *changed])

    def decide(self, prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> list[tuple[Decision, FoundObjects]]:
        """Decides over some images, each by its prompt."""
        thresholds = [self.options.score_threshold(prompt.task) for prompt in prompts]
        detected = self.detector.detect(images, min(thresholds))
        decisions = []
        for prompt, image, detections in zip(prompts, images, detected, strict=True):
            found = filter_detections(detections, self.classes, prompt.task, self.options)
            colors = image_colors(image, self.colors, self.options)
            decisions.append((decide(found, prompt.metadata, colors, self.options), found))
        return decisions

    def __call__(self, samples: Sequence[Sample], images: Sequence[Image.Image]) -> list[GenEvalResult]:
        """Decides over some images of a folder."""
        decisions = self.decide([sample.prompt for sample in samples], images)
        return [
            GenEvalResult.of(
                sample.path,
                sample.prompt,
                decision.correct,
                decision.reason,
                found,
                self.name,
                sha256_file(sample.path),
            )
            for sample, (decision, found) in zip(samples, decisions, strict=True)
        ]


@dataclass(frozen=True)
class Evaluation:
    """Results of all images that could be read, in the folder's order, and what could not be scored."""

    results: list[GenEvalResult]
    missing: list[Path]
    unreadable: list[FileError]


def evaluate_folder(
    folder: Path | str,
    results_path: Path | str,
    judge: Judge,
    batch_size: int = 8,
    log: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Scores every image of a folder that has no result yet, and writes the results after each batch.

    A result is kept if its image and its prompt are still the same; so an interrupted run goes on where it was, and
    images made anew are scored anew.

    Args:
        log: called with the number of images done, at the start and after each batch, and of all images.

    Raises:
        FileError: the folder or the results are wrong, or the results are of another detector or other options.
    """
    samples = read_folder(folder, judge.classes, judge.tasks)
    results = finished(samples.samples, results_path, judge.name)
    write_results(results_path, results.values())
    pending = [sample for sample in samples.samples if sample.place not in results]
    unreadable: list[FileError] = []
    total = len(samples.samples)
    log(len(results), total)
    for start in range(0, len(pending), batch_size):
        readable: list[Sample] = []
        images: list[Image.Image] = []
        for sample in pending[start : start + batch_size]:
            try:
                images.append(read_rgb(sample.path))
                readable.append(sample)
            except FileError as error:
                unreadable.append(error)
        if readable:
            new = judge(readable, images)
            append_results(results_path, new)
            results |= {sample.place: result for sample, result in zip(readable, new, strict=True)}
        log(len(results) + len(unreadable), total)
    ordered = [results[sample.place] for sample in samples.samples if sample.place in results]
    write_results(results_path, ordered)
    return Evaluation(ordered, samples.missing, unreadable)


def finished(
    samples: Sequence[Sample], results_path: Path | str, judge_name: str
) -> dict[tuple[str, ...], GenEvalResult]:
    """Results, by place, of those images that are still what they were.

    Raises:
        FileError: the file is damaged or holds results of another detector or other options.
    """
    if not Path(results_path).exists():
        return {}
    by_place = {sample.place: sample for sample in samples}
    kept: dict[tuple[str, ...], GenEvalResult] = {}
    for result in read_results(results_path):
        if result.detector != judge_name:
            raise FileError(
                results_path,
                f"it holds results of another detector or other options ({result.detector or 'not named'}).",
                f"Remove it or name another file for those of {judge_name}.",
            )
        sample = by_place.get(Path(result.filename).parts[-3:])
        if sample is None:
            continue
        now = GenEvalResult.of(sample.path, sample.prompt, result.correct, result.reason, {})
        if result.metadata == now.metadata and result.image_sha256 == sha256_file(sample.path):
            kept[sample.place] = dataclasses.replace(result, filename=now.filename)
    return kept
