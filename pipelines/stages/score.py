"""Stage `score`: every image set against every reference, under every extractor, as one tidy table."""

import argparse
from typing import Any

import numpy as np
import pandas as pd

from pipelines.params import Params
from pipelines.paths import CLASSIFIERS, SAMPLES, SCORES, SUBSET, WORK
from pipelines.progress import progress
from pipelines.stage import Stage, StagePlan
from pipelines.stages.sample import BASE, SampleSet, plan_sets
from vapi_core.data.subset import Subset
from vapi_core.files import atomic_path
from vapi_core.scoring.classifier import accuracy
from vapi_core.scoring.features import Extractor, Features, cached_features, load_extractor
from vapi_core.scoring.fidelity import fidelity

TABLE = SCORES / "scores.csv"
SEED = 0  # of KID's subsets and the Inception Score's splits: the same for all sets


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    models = (BASE, *params.align.methods)
    upstream = (SUBSET, CLASSIFIERS / "scorer", *(SAMPLES / model for model in models))
    return StagePlan("score", SCORES, params.score.model_dump(), upstream)


def open_extractor(name: str, params: Params) -> Extractor:
    if name in ("scorer-classifier", "reward-classifier"):
        return load_extractor("classifier", weights=CLASSIFIERS / name.removesuffix("-classifier"))
    if name == "inception-v3-compat":
        return load_extractor(name, weights=params.score.inception_checkpoint)
    return load_extractor(name, input_size=params.score.input_size)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params.score
    sets = [s for model in (BASE, *stage.params.align.methods) for s in plan_sets(stage.params, model)]
    subset = Subset.open(SUBSET)
    rows: list[dict[str, Any]] = []
    for name in params.extractors:
        extractor = open_extractor(name, stage.params)

        def features(images: np.ndarray) -> Features:
            return cached_features(WORK / "features", images, extractor, params.batch_size, stage.device)

        references = {split: features(subset.split(split)[0]) for split in params.reference_splits}
        with progress(f"score, {name}", len(sets), "sets") as advance:
            for sample_set in sets:
                samples = features(np.load(sample_set.directory / "images.npy", mmap_mode="r"))
                labels = np.load(sample_set.directory / "labels.npy")
                for split, reference in references.items():
                    scores = fidelity(samples, reference, seed=SEED, inception_splits=params.is_splits)
                    if name == "scorer-classifier":
                        scores["accuracy"] = accuracy(samples["logits"], labels)
                    rows.append({**identity(sample_set), "extractor": name, "reference": split, **scores})
                advance()
    table = pd.DataFrame(rows)
    with atomic_path(TABLE) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    log_scores(stage, sets, table)
    stage.metrics["sets"] = len(sets)


def identity(sample_set: SampleSet) -> dict[str, Any]:
    """Columns that name a set."""
    return {
        "model": sample_set.model,
        "seed": sample_set.seed,
        "temperature": sample_set.config.temperature,
        "guidance_scale": sample_set.config.guidance_scale,
    }
