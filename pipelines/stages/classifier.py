"""Stage `classifier`: the small network that rewards, or the one that scores. They share neither images nor kind."""

import argparse
import math

from pipelines.paths import CLASSIFIERS, SUBSET
from pipelines.stage import Stage, StagePlan, run_stage
from vapi_core.data.subset import Subset, subset_hash
from vapi_core.scoring.classifier import BATCH_SIZE, accuracy, save_classifier, train_classifier
from vapi_core.scoring.features import PixelScaling, extract_with


def plan(params, arguments) -> StagePlan:
    role = getattr(params.classifiers, arguments.role)
    return StagePlan(f"classifier@{arguments.role}", CLASSIFIERS / arguments.role, role.model_dump(), (SUBSET,))


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = getattr(stage.params.classifiers, arguments.role)
    subset = Subset.open(SUBSET)
    images, labels = subset.split(params.split)
    steps = math.ceil(params.epochs * len(images) / BATCH_SIZE)
    with stage.training_log(steps, BATCH_SIZE) as log:
        classifier = train_classifier(
            images,
            labels,
            architecture=arguments.role,
            num_classes=len(subset.classes),
            epochs=params.epochs,
            seed=params.seed,
            device=stage.device,
            log=log,
        )
    held_out, held_out_labels = subset.split(stage.params.score.reference_splits[0])
    extracted = extract_with(PixelScaling(classifier), held_out, device=stage.device)
    stage.metrics["held_out_accuracy"] = accuracy(extracted["logits"], held_out_labels)
    save_classifier(classifier, stage.plan.output, {"subset_sha256": subset_hash(SUBSET), **params.model_dump()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", required=True, choices=("reward", "scorer"))
    run_stage(plan, work, parser)
