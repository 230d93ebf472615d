"""GenEval within the pipeline: the judge that the params name, what is known of it, and what it decides."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pipelines.config.params import GenEvalParams
from pipelines.config.paths import CLASSIFIERS, remedy
from vapi_core.data.subset import Subset
from vapi_core.models.classifier import load_classifier
from vapi_core.scenes.detector import detector_accuracy, require_accuracy, scene_judge
from vapi_core.scoring.geneval.detectors import COCO_CLASSES, HUB_DETECTOR, ClipColors, Mask2Former
from vapi_core.scoring.geneval.folder import Prompt
from vapi_core.scoring.geneval.run import Judge

BATCH = 64


def open_judge(params: GenEvalParams, device: torch.device) -> Judge:
    """The judge, ready for images.

    Raises:
        FileError: a model is missing or damaged.
    """
    if params.detector == "mask2former":
        from vapi_core.models.clip import load_clip  # imports open_clip, which takes seconds
        from vapi_core.scoring.preference import CLIP_ARCHITECTURE

        detector = Mask2Former(params.checkpoint or HUB_DETECTOR, device=device)
        colors = ClipColors(load_clip(CLIP_ARCHITECTURE, params.colors_checkpoint, device))
        return Judge(detector, colors, colors.name, COCO_CLASSES)
    return scene_judge(load_classifier(CLASSIFIERS / "scorer", device, remedy(CLASSIFIERS / "scorer")))


def measure_judge(judge: Judge, subset: Subset, split: str) -> dict[str, float]:
    """How often the judge of scenes is right about those of a split, of which everything is known.

    Raises:
        FileError: it is wrong too often.
    """
    assert subset.annotations is not None
    images, _ = subset.split(split)
    accuracy = detector_accuracy(judge, images, subset.annotations[slice(*subset.splits[split])])
    require_accuracy(accuracy, CLASSIFIERS / "scorer")
    tasks = {f"detector_accuracy {task}": share for task, share in accuracy.tasks.items()}
    known = {
        "detector_accuracy": accuracy.decisions,
        "detector_accuracy_fulfilled": accuracy.fulfilled,
        "detector_accuracy_foreign": accuracy.foreign,
    }
    return known | tasks


def correct_images(judge: Judge, images: np.ndarray, labels: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """How many images of each prompt are correct, int64 [prompts]; images uint8 [N, H, W, 3], prompts `labels` [N]."""
    correct = np.zeros(len(prompts), dtype=np.int64)
    for start in range(0, len(images), BATCH):
        numbers = labels[start : start + BATCH]
        pictures = [Image.fromarray(image) for image in images[start : start + BATCH]]
        for number, (decision, _) in zip(numbers, judge.decide([prompts[n] for n in numbers], pictures), strict=True):
            correct[number] += decision.correct
    return correct


def reconstruction_metrics(
    judge: Judge, reconstructions: np.ndarray, annotations: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """How many reconstructions of scenes, uint8 [N, S, S, 3], still do what the scene was asked for: shares, of each
    task and overall. No generator over these tokens can be expected to score better."""
    prompts = [Prompt(annotation["request"]) for annotation in annotations]
    correct = correct_images(judge, reconstructions, np.arange(len(prompts)), prompts)
    of_task: dict[str, list[int]] = {}
    for prompt, right in zip(prompts, correct, strict=True):
        of_task.setdefault(prompt.task, []).append(int(right))
    tasks = {f"reconstruction_geneval {task}": float(np.mean(right)) for task, right in of_task.items()}
    return {"reconstruction_geneval": float(np.mean(list(tasks.values())))} | tasks


def prompt_rows(correct: np.ndarray, labels: np.ndarray, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """One row per prompt of a set."""
    return pd.DataFrame(
        {
            "prompt": np.arange(len(prompts)),
            "task": [prompt.task for prompt in prompts],
            "correct": correct,
            "images": np.bincount(labels, minlength=len(prompts)),
        }
    )
