"""Checks of GenEval: decisions, reasons and kept boxes case by case, the primitives, the summary, the crops."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.parity.fixtures import Check, Fixture, exact
from vapi_core.scoring.geneval.detectors import COCO_CLASSES
from vapi_core.scoring.geneval.folder import GenEvalResult, Prompt, read_prompts
from vapi_core.scoring.geneval.rules import (
    Detections,
    FoundObject,
    GenEvalOptions,
    decide,
    filter_detections,
    intersection_over_union,
    object_crops,
    relative_position,
)
from vapi_core.scoring.geneval.scores import GenEvalScores, official_text, summarize

CROP_OPTIONS = {
    "default": GenEvalOptions(),
    "original_bg": GenEvalOptions(bgcolor="original"),
    "no_crop": GenEvalOptions(crop=False),
    "nomask": GenEvalOptions(),
}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def file_of(fixture: Fixture, suffix: str) -> Path:
    return fixture.stem.with_name(fixture.stem.name + suffix)


def beside(fixture: Fixture, name: str) -> Path:
    """A data file beside the fixture, or else anywhere below the root."""
    path = fixture.stem.with_name(name)
    return path if path.exists() else next(iter(sorted(fixture.root.rglob(name))))


def is_cases(fixture: Fixture) -> bool:
    if ".jsonl" not in fixture.suffixes:
        return False
    with open(file_of(fixture, ".jsonl"), encoding="utf-8") as file:
        first = file.readline()
    return {"detections", "correct", "reason", "kept"} <= json.loads(first).keys()


def is_prompts(fixture: Fixture) -> bool:
    if fixture.suffixes != [".jsonl"]:
        return False
    with open(file_of(fixture, ".jsonl"), encoding="utf-8") as file:
        return {"tag", "include", "prompt"} <= json.loads(file.readline()).keys()


def is_crops(fixture: Fixture) -> bool:
    return ".npz" in fixture.suffixes and "crop_default_0" in np.load(file_of(fixture, ".npz")).files


def run_case(case: dict[str, Any], metadata: dict[str, Any]) -> tuple[bool, str, list[tuple[str, list[int]]]]:
    """Our decision, reason, and the kept boxes in the order of the classes."""
    boxes = {name: np.array(rows, np.float32).reshape(-1, 5) for name, rows in case["detections"].items()}
    options = GenEvalOptions(**case.get("options", {}))
    found = filter_detections(Detections(boxes), COCO_CLASSES, metadata["tag"], options)

    def colors(name: str, objects: list[FoundObject]) -> list[str]:
        return [case["colors"][name][found.index] for found in objects]

    decision = decide(found, metadata, colors, options)
    return decision.correct, decision.reason, [(name, [o.index for o in objects]) for name, objects in found.items()]


def check_cases(fixture: Fixture) -> Iterator[Check]:
    """geneval/cases_*: one check a case; the order of the classes in `kept` counts too."""
    cases = read_lines(file_of(fixture, ".jsonl"))
    named = any("metadata_index" in case for case in cases)
    prompts = read_lines(beside(fixture, "evaluation_metadata.jsonl")) if named else []
    for case in cases:
        metadata = case["metadata"] if "metadata" in case else prompts[case["metadata_index"]]
        correct, reason, kept = run_case(case, metadata)
        yield exact(f"case {case['id']} correct", correct, case["correct"])
        yield exact(f"case {case['id']} reason", reason, case["reason"])
        yield exact(f"case {case['id']} kept", kept, list(case["kept"].items()))


def check_primitives(fixture: Fixture) -> Iterator[Check]:
    """geneval/primitives: IoU and relations of given boxes."""
    for i, (a, b, value) in enumerate(fixture.description["compute_iou"]):
        yield Check(f"iou {i}", abs(float(intersection_over_union(a, b)) - value), 1e-6)
    for i, (a, b, threshold, relations) in enumerate(fixture.description["relative_position"]):
        yield exact(f"relations {i}", list(relative_position(a, b, threshold)), relations)


def scores_of_cases(fixture: Fixture) -> GenEvalScores:
    prompts = read_lines(beside(fixture, "evaluation_metadata.jsonl"))
    results = []
    for name in ("cases_a.jsonl", "cases_b.jsonl"):
        for case in read_lines(beside(fixture, name)):
            metadata = prompts[case["metadata_index"]]
            correct, reason, _ = run_case(case, metadata)
            results.append(GenEvalResult.of(f"{case['id']}.png", Prompt(metadata), correct, reason, {}))
    return summarize(results, replicates=2)


def check_summary(fixture: Fixture) -> Iterator[Check]:
    """geneval/summary: the official summary of the first two files of cases, from our decisions."""
    expected, scores = fixture.description, scores_of_cases(fixture)
    yield exact("printed text", official_text(scores), expected["official_stdout"])
    for name in ("images", "prompts"):
        yield exact(name, getattr(scores, name), expected[name])
    for name in ("correct_images", "correct_prompts", "overall"):
        actual = scores.overall.mean if name == "overall" else getattr(scores, name)
        yield Check(name, abs(actual - expected[name]), 1e-12)
    yield exact("tasks in order", list(scores.tasks), list(expected["tasks"]))
    for task, row in expected["tasks"].items():
        yield Check(f"{task} mean", abs(scores.tasks[task].mean - row["mean"]), 1e-12)
        yield exact(f"{task} correct", scores.tasks[task].correct, row["correct"])
        yield exact(f"{task} n", scores.tasks[task].images, row["n"])


def check_crops(fixture: Fixture) -> Iterator[Check]:
    """geneval/color_crops: what the color classifier is shown, pixel by pixel."""
    arrays = np.load(file_of(fixture, ".npz"))
    image = Image.fromarray(arrays["image"])
    for name in (name for name in arrays.files if name.startswith("crop_")):
        kind, _, index = name.removeprefix("crop_").rpartition("_")
        mask = None if kind == "nomask" else arrays["masks"][int(index)]
        found = FoundObject(int(index), arrays["boxes"][int(index)], mask)
        (crop,) = object_crops(image, [found], CROP_OPTIONS[kind])
        yield exact(name, np.array_equal(np.asarray(crop), arrays[name]), True)


def check_prompts(fixture: Fixture) -> Iterator[Check]:
    """geneval/evaluation_metadata: every line is a prompt we understand, and comes back as it was."""
    path = file_of(fixture, ".jsonl")
    prompts = read_prompts(path, COCO_CLASSES)
    yield exact("prompts", [prompt.metadata for prompt in prompts], read_lines(path))


def check_classes(fixture: Fixture) -> Iterator[Check]:
    """geneval/object_names: our class list."""
    yield exact("classes", list(COCO_CLASSES), file_of(fixture, ".txt").read_text().split("\n")[:80])
