"""GenEval within the pipeline: the judge that the params name, and the decisions over image sets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pipelines.params import GenEvalParams
from pipelines.paths import CLASSIFIERS
from vapi_core.data.subset import Subset
from vapi_core.models.classifier import load_classifier
from vapi_core.scenes.detector import detector_accuracy, require_accuracy, scene_judge
from vapi_core.scoring.geneval.comparison import task_scores
from vapi_core.scoring.geneval.detectors import COCO_CLASSES, HUB_DETECTOR, ClipColors, Mask2Former
from vapi_core.scoring.geneval.folder import Prompt
from vapi_core.scoring.geneval.run import Judge

GENEVAL_TABLE = Path("scores", "geneval.csv")  # below a stage's folder of reports
SETTING = ["model", "temperature", "guidance_scale"]
BATCH = 64


def open_judge(
    params: GenEvalParams, subset: Subset, split: str, device: torch.device
) -> tuple[Judge, dict[str, float]]:
    """The judge and what is known of its accuracy: for scenes, measured on those of a split.

    Raises:
        FileError: a model is missing or damaged, or the detector of scenes is wrong too often.
    """
    if params.detector == "mask2former":
        from vapi_core.models.clip import load_clip  # imports open_clip, which takes seconds
        from vapi_core.scoring.preference import CLIP_ARCHITECTURE

        detector = Mask2Former(params.checkpoint or HUB_DETECTOR, device=device)
        colors = ClipColors(load_clip(CLIP_ARCHITECTURE, params.colors_checkpoint, device))
        return Judge(detector, colors, colors.name, COCO_CLASSES), {}
    assert subset.annotations is not None
    judge = scene_judge(load_classifier(CLASSIFIERS / "scorer", device))
    images, _ = subset.split(split)
    accuracy = detector_accuracy(judge, images, subset.annotations[slice(*subset.splits[split])])
    require_accuracy(accuracy, CLASSIFIERS / "scorer")
    tasks = {f"detector_accuracy {task}": share for task, share in accuracy.tasks.items()}
    known = {
        "detector_accuracy": accuracy.decisions,
        "detector_accuracy_fulfilled": accuracy.fulfilled,
        "detector_accuracy_foreign": accuracy.foreign,
    }
    return judge, known | tasks


def correct_images(judge: Judge, images: np.ndarray, labels: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """How many images of each prompt are correct, int64 [prompts], of images uint8 [N, H, W, 3] of prompts `labels` [N]."""
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
    """How many reconstructions of scenes, uint8 [N, S, S, 3], still do what the scene was asked for: shares, of each task
    and overall. No generator over these tokens can be expected to score better."""
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


def shares(table: pd.DataFrame) -> np.ndarray:
    """Shares of correct images, float [seeds, prompts], of the rows of one model and setting."""
    share = table.assign(share=table["correct"] / table["images"])
    return share.pivot(index="seed", columns="prompt", values="share").to_numpy()


def summarize_geneval(judged: pd.DataFrame) -> pd.DataFrame:
    """GenEval per setting and task, over all seeds."""
    rows: list[dict[str, Any]] = []
    for key, part in judged.groupby(SETTING, sort=False):
        for score in task_scores(shares(part), prompt_tasks(part)):
            rows.append({**dict(zip(SETTING, key, strict=True)), **asdict(score)})
    return pd.DataFrame(rows)


def compare_geneval(judged: pd.DataFrame, main_temperature: float) -> pd.DataFrame:
    """GenEval of VA-π minus that of everything else with the same guidance, on the same prompts and seeds."""
    rows: list[dict[str, Any]] = []
    for guidance, part in judged.groupby("guidance_scale", sort=False):
        by_setting = dict(iter(part.groupby(SETTING[:2], sort=False)))
        aligned = by_setting.pop(("va-pi", main_temperature), None)
        if aligned is None:
            continue
        for (model, temperature), other in by_setting.items():
            difference = shares(aligned) - shares(other)
            for score in task_scores(difference, prompt_tasks(aligned)):
                against = {"against": model, "temperature": temperature, "guidance_scale": guidance}
                rows.append({**against, **asdict(score)})
    return pd.DataFrame(rows)


def prompt_tasks(part: pd.DataFrame) -> list[str]:
    """The task of every prompt, in order."""
    return part.drop_duplicates("prompt").sort_values("prompt")["task"].tolist()


def geneval_metrics(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """setting -> task -> score, for `dvc metrics diff`."""
    metrics: dict[str, dict[str, float]] = {}
    for row in table.to_dict("records"):
        setting = f"{row['model']} T={row['temperature']} g={row['guidance_scale']}"
        metrics.setdefault(setting, {})[row["task"]] = float(f"{row['mean']:.6g}")
    return metrics


def overall_scores(table: pd.DataFrame) -> pd.DataFrame:
    """The overall score of every set: one row per set, column `overall`, of the rows of all prompts."""
    keys = ["generator", *SETTING, "seed"]
    by_task = table.groupby([*keys, "task"])[["correct", "images"]].sum()
    return (by_task["correct"] / by_task["images"]).groupby(keys).mean().rename("overall").reset_index()
