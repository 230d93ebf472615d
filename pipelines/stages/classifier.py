"""Stage `classifier`: the small network that rewards, or one of the two that score. They share neither images nor kind.

One that scores, `uci`, learns from other digits than those of the subset.

Of scenes, the one that scores is the digit classifier of their detector: it learns from what the detector cuts out. The
one that rewards learns digit and color of an object from windows of a scene, in the size in which it will see scenes.
"""

import argparse
import math

import numpy as np

from pipelines.config.paths import CLASSIFIERS, SUBSET, remedy
from pipelines.frame.inputs import open_subset
from pipelines.frame.stage import Stage, StagePlan, run_stage
from vapi_core.data.sources import uci_digits
from vapi_core.data.subset import Subset, subset_hash
from vapi_core.models.classifier import accuracy, save_classifier
from vapi_core.scenes.detector import annotated_crops
from vapi_core.scenes.source import DIGITS
from vapi_core.scenes.windows import WINDOW_CLASSES, object_windows
from vapi_core.scoring.features import extract, load_extractor
from vapi_core.training.classification import train_classifier


def plan(params, arguments) -> StagePlan:
    role = getattr(params.classifiers, arguments.role)
    options = {} if role is None else role.model_dump()
    return StagePlan(f"classifier@{arguments.role}", CLASSIFIERS / arguments.role, options, (SUBSET,))


def examples(subset: Subset, split: str, role: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Images uint8 [N, H, W, 3] of a split, labels [N] and number of classes for the network of a role."""
    images, labels = subset.split(split)
    if subset.annotations is None:
        return images, labels, len(subset.classes)
    annotations = subset.annotations[slice(*subset.splits[split])]
    if role == "reward":
        return *object_windows(images, annotations), WINDOW_CLASSES
    crops, digits, _ = annotated_crops(images, annotations)
    return crops, digits, len(DIGITS)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = getattr(stage.params.classifiers, arguments.role)
    if params is None:  # nothing needs it, but the graph has the same stages for every profile
        stage.skip_training()
        stage.output.mkdir(parents=True, exist_ok=True)
        return
    subset = open_subset()
    if arguments.role == "uci":
        images, labels = uci_digits()
        classes = len(DIGITS)
    else:
        images, labels, classes = examples(subset, params.split, arguments.role)
    steps = math.ceil(params.epochs * len(images) / params.batch_size)
    with stage.training_log(steps, params.batch_size) as log:
        classifier = train_classifier(
            images,
            labels,
            architecture=arguments.role,
            num_classes=classes,
            epochs=params.epochs,
            batch_size=params.batch_size,
            seed=params.seed,
            device=stage.device,
            log=log,
        )
    held_out, held_out_labels, _ = examples(subset, stage.params.score.reference_splits[0], arguments.role)
    save_classifier(
        classifier, stage.output, {"subset_sha256": subset_hash(SUBSET, remedy(SUBSET)), **params.model_dump()}
    )
    logits = extract(held_out, load_extractor("classifier", weights=stage.output), device=stage.device)["logits"]
    stage.metrics["held_out_accuracy"] = accuracy(logits, held_out_labels)


def main(arguments: list[str]) -> int:
    """Runs the stage; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages classifier")
    parser.add_argument("--role", required=True, choices=("reward", "scorer", "uci"))
    return run_stage(plan, work, parser.parse_args(arguments))
