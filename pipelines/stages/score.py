"""Stage `score`: every image set against every reference, under every extractor, as one tidy table."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipelines.inputs import open_split, open_tokenizer
from pipelines.journal import Header
from pipelines.params import Params, decimal
from pipelines.paths import CLASSIFIERS, RUN_FILE, SAMPLES, SCORES, SUBSET, WORK
from pipelines.progress import progress
from pipelines.stage import Stage, StagePlan, run_stage
from pipelines.stages.sample import BASE, SampleSet, plan_sets
from pipelines.tracking import add_scores, now
from vapi_core.data.subset import Subset
from vapi_core.files import atomic_path, read_json
from vapi_core.images import to_uint8
from vapi_core.scoring.classifier import accuracy
from vapi_core.scoring.features import Extractor, cached_features, load_extractor
from vapi_core.scoring.fidelity import feature_statistics, fidelity, frechet_distance

TABLE = SCORES / "scores.csv"
SCORE_NAMES = ["fid", "kid_mean", "is_mean", "precision", "recall", "accuracy"]
BATCH = 256
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
    reconstructions = reconstruct(params.reference_splits[0], stage.device)
    rows: list[dict[str, Any]] = []
    for name in params.extractors:
        extractor = open_extractor(name, stage.params)

        features = partial(
            cached_features,
            WORK / "features",
            extractor=extractor,
            batch_size=params.batch_size,
            device=stage.device,
        )
        references = {split: features(images=subset.split(split)[0]) for split in params.reference_splits}
        main = params.reference_splits[0]
        stage.metrics[f"reconstruction_fid {name}"] = frechet_distance(
            feature_statistics(features(images=reconstructions)["features"]),
            feature_statistics(references[main]["features"]),
        )
        with progress(f"score, {name}", len(sets), "sets") as advance:
            for sample_set in sets:
                samples = features(images=np.load(sample_set.directory / "images.npy", mmap_mode="r"))
                labels = np.load(sample_set.directory / "labels.npy")
                for split, reference in references.items():
                    scores = fidelity(
                        samples,
                        reference,
                        seed=SEED,
                        inception_splits=params.is_splits,
                        kid_subsets=params.kid_subsets,
                        kid_subset_size=params.kid_subset_size,
                    )
                    if name == "scorer-classifier":
                        scores["accuracy"] = accuracy(samples["logits"], labels)
                    rows.append({**identity(sample_set), "extractor": name, "reference": split, **scores})
                advance()
    table = pd.DataFrame(rows)
    with atomic_path(TABLE) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    log_scores(sets, table, stage.params)
    stage.metrics["sets"] = len(sets)


def reconstruct(split: str, device: torch.device) -> np.ndarray:
    """Images of a split, encoded and decoded, uint8 [N, H, W, 3]: what no generator over these tokens can beat."""
    data, tokenizer = open_split(split, device), open_tokenizer(device)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(data), BATCH):
            tokens, _ = data.batch(np.arange(start, min(start + BATCH, len(data))))
            parts.append(to_uint8(tokenizer.decode(tokens)))
    return np.concatenate(parts)


def log_scores(sets: list[SampleSet], table: pd.DataFrame, params: Params) -> None:
    """Adds final scores, against the main reference, to the MLflow run of the generator each set was drawn from.

    A score is named score/METRIC EXTRACTOR; settings other than the main one are appended to the name. The base has
    one run for all its sampling seeds: their mean.
    """
    table = table[table["reference"] == params.score.reference_splits[0]]
    metrics = [name for name in SCORE_NAMES if name in table]
    scores: dict[str, dict[str, float]] = {}
    headers: dict[str, Header] = {}
    for generator, part in table.groupby(table["generator"]):
        run = read_json(Path(generator) / RUN_FILE)
        headers[run["key"]] = Header(run["experiment"], run["stage"], run["key"], now())
        row: dict[str, float] = {}
        for (temperature, guidance, extractor), group in part.groupby(["temperature", "guidance_scale", "extractor"]):
            main = temperature == params.sample.temperature and guidance == params.sample.guidance_scales[0]
            setting = "" if main else f" T{decimal(float(str(temperature)))} g{decimal(float(str(guidance)))}"
            row |= {
                f"score/{name} {extractor}{setting}": float(group[name].mean())
                for name in metrics
                if group[name].notna().all()
            }
        scores[run["key"]] = row
    add_scores(scores, headers)


def identity(sample_set: SampleSet) -> dict[str, Any]:
    """Columns that name a set."""
    return {
        "model": sample_set.model,
        "generator": str(sample_set.generator),
        "seed": sample_set.seed,
        "temperature": sample_set.config.temperature,
        "guidance_scale": sample_set.config.guidance_scale,
    }


if __name__ == "__main__":
    options = {argument.partition("=")[0] for argument in sys.argv[1:]}
    if "--geneval" in options:
        from pipelines.geneval_command import main

        sys.exit(main(sys.argv[1:]))
    if "--preference" in options:
        from pipelines.preference_command import main

        sys.exit(main(sys.argv[1:]))
    run_stage(plan, work)
