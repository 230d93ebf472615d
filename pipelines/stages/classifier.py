"""Stage `classifier`: the small network that rewards, or the one that scores. They share neither images nor kind."""

import argparse
import math

from pipelines.paths import CLASSIFIERS, SUBSET
from pipelines.stage import Stage, StagePlan, run_stage
from vapi_core.data.subset import Subset, subset_hash
from vapi_core.scoring.classifier import accuracy, save_classifier, train_classifier
from vapi_core.scoring.features import extract, load_extractor


def plan(params, arguments) -> StagePlan:
    role = getattr(params.classifiers, arguments.role)
    return StagePlan(f"classifier@{arguments.role}", CLASSIFIERS / arguments.role, role.model_dump(), (SUBSET,))


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = getattr(stage.params.classifiers, arguments.role)
    subset = Subset.open(SUBSET)
    images, labels = subset.split(params.split)
    steps = math.ceil(params.epochs * len(images) / params.batch_size)
    with stage.training_log(steps, params.batch_size) as log:
        classifier = train_classifier(
            images,
            labels,
            architecture=arguments.role,
            num_classes=len(subset.classes),
            epochs=params.epochs,
            batch_size=params.batch_size,
            seed=params.seed,
            device=stage.device,
            log=log,
        )
    held_out, held_out_labels = subset.split(stage.params.score.reference_splits[0])
    save_classifier(classifier, stage.output, {"subset_sha256": subset_hash(SUBSET), **params.model_dump()})
    logits = extract(held_out, load_extractor("classifier", weights=stage.output), device=stage.device)["logits"]
    stage.metrics["held_out_accuracy"] = accuracy(logits, held_out_labels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", required=True, choices=("reward", "scorer"))
    run_stage(plan, work, parser)
