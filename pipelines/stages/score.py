"""Stage `score`: every image set against every reference, under every extractor, as one tidy table.

For text to image a second table says how many images of every prompt GenEval finds correct.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipelines import geneval_sets
from pipelines.comparison import SCORE_TITLES
from pipelines.inputs import open_prompts, open_samples, open_split, open_tokenizer
from pipelines.journal import Header
from pipelines.params import Params, ScoreParams, decimal
from pipelines.paths import BASE, CLASSIFIERS, OWN_WORK, REPORTS, RIVAL_REPORTS, RUN_FILE, SUBSET, WORK, remedy
from pipelines.progress import progress
from pipelines.protocol import PROTOCOL, facts_of_protocol
from pipelines.stage import Stage, StagePlan, outputs_hash, run_stage
from pipelines.stages.sample import STEPS, TEMPERATURES, SampleSet, plan_sets, samples_of
from pipelines.tracking import add_scores, now
from vapi_core.data.subset import Subset, array_writer
from vapi_core.files import atomic_path, read_texts, write_json
from vapi_core.images import images_of_a_pass, to_uint8
from vapi_core.scoring.classifier import accuracy
from vapi_core.scoring.features import Extractor, Features, cached_features, load_extractor
from vapi_core.scoring.fidelity import (
    ReferenceBatch,
    cached_statistics,
    feature_statistics,
    fidelity,
    frechet_distance,
    load_reference_batch,
)

TABLE = Path("scores", "scores.csv")  # below the stage's folder of reports
SEED = 0  # of KID's subsets and the Inception Score's splits: the same for all sets


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    upstream = (SUBSET, CLASSIFIERS / "scorer", *(samples_of(params, model) for model in models_of(params, arguments)))
    name, reports = ("score-rivals", RIVAL_REPORTS) if arguments.rivals else ("score", REPORTS)
    return StagePlan(name, reports / TABLE.parent, params.score.model_dump(), upstream, reports=reports)


def models_of(params: Params, arguments: argparse.Namespace) -> tuple[str, ...]:
    """The models whose sets are scored: those of the experiment, or what the table of rivals needs beside them."""
    return (TEMPERATURES, *params.rivals.methods, STEPS) if arguments.rivals else (BASE, *params.align.methods)


def open_extractor(name: str, params: Params) -> Extractor:
    if name in ("scorer-classifier", "reward-classifier"):
        return load_extractor("classifier", weights=CLASSIFIERS / name.removesuffix("-classifier"))
    if name == "inception-v3-compat":
        return load_extractor(name, weights=params.score.inception_checkpoint)
    return load_extractor(name, input_size=params.score.input_size)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params.score
    sets = [s for model in models_of(stage.params, arguments) for s in plan_sets(stage.params, model)]
    subset, batch = Subset.open(SUBSET), open_reference_batch(stage.params)
    reconstructions = reconstruct(params.reference_splits[0], stage.device)
    rows: list[dict[str, Any]] = []
    for name in params.extractors:
        extractor, references = open_references(name, stage.params, stage.device, batch)
        features = partial(
            cached_features,
            WORK / "features",
            extractor=extractor,
            batch_size=params.batch_size,
            device=stage.device,
        )
        held_out = features(images=subset.split(params.reference_splits[0])[0])
        stage.metrics[f"reconstruction_fid {name}"] = frechet_distance(
            feature_statistics(features(images=reconstructions)["features"]),
            feature_statistics(held_out["features"]),
        )
        with progress(f"score, {name}", len(sets), "sets") as advance:
            for sample_set in sets:
                images, labels = open_samples(sample_set.directory)
                samples = features(images=images)
                for reference_name, reference in references.items():
                    scores = score_images(samples, reference, labels, name, params, batch)
                    rows.append({**identity(sample_set), "extractor": name, "reference": reference_name, **scores})
                advance()
    table = pd.DataFrame(rows)
    with atomic_path(stage.plan.reports / TABLE) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    log_scores(whole_runs(table), stage.params, stage.plan.name)
    write_json(stage.plan.reports / PROTOCOL, facts_of_protocol(params, batch))
    if params.geneval is not None:
        score_geneval([s for s in sets if s.steps is None], reconstructions, stage)
    stage.metrics["sets"] = len(sets)


def open_reference_batch(params: Params) -> ReferenceBatch | None:
    """The batch that is the reference instead of splits, if the params name one."""
    path = params.score.reference_batch
    return None if path is None else load_reference_batch(path)


def open_references(
    name: str, params: Params, device: torch.device, batch: ReferenceBatch | None
) -> tuple[Extractor, dict[str, Features]]:
    """An extractor by its name in the params, and what it says about the images of every reference."""
    extractor, subset, names = open_extractor(name, params), Subset.open(SUBSET), params.score.references
    images = {split: subset.split(split)[0] for split in names} if batch is None else {names[0]: batch.images}
    features = partial(cached_features, WORK / "features", batch_size=params.score.batch_size, device=device)
    return extractor, {name: features(images=pixels, extractor=extractor) for name, pixels in images.items()}


def score_images(
    samples: Features,
    reference: Features,
    labels: np.ndarray,
    extractor: str,
    params: ScoreParams,
    batch: ReferenceBatch | None,
) -> dict[str, float]:
    """All scores of one image set, whose classes are `labels` [N], against one reference."""
    if batch is not None and extractor == "inception-v3-compat":
        statistics = batch.statistics
    else:
        statistics = cached_statistics(WORK / "features", reference["features"])
    scores = fidelity(
        samples,
        reference,
        seed=SEED,
        reference_statistics=statistics,
        inception_splits=params.is_splits,
        kid_subsets=params.kid_subsets,
        kid_subset_size=params.kid_subset_size,
    )
    if extractor == "scorer-classifier":
        scores["accuracy"] = accuracy(samples["logits"], labels)
    return scores


def score_geneval(sets: list[SampleSet], reconstructions: np.ndarray, stage: Stage) -> None:
    """Judges all sets, writes their table and adds the overall scores to the MLflow runs behind them."""
    params, prompts = stage.params.score, open_prompts()
    assert params.geneval is not None
    subset = Subset.open(SUBSET)
    judge, accuracies = geneval_sets.open_judge(params.geneval, subset, params.reference_splits[0], stage.device)
    stage.metrics |= accuracies
    if params.geneval.detector == "scenes":
        assert subset.annotations is not None
        annotations = subset.annotations[slice(*subset.splits[params.reference_splits[0]])]
        stage.metrics |= geneval_sets.reconstruction_metrics(judge, reconstructions, annotations)
    tables = []
    with progress("score, geneval", len(sets), "sets") as advance:
        for sample_set in sets:
            images, labels = open_samples(sample_set.directory)
            correct = geneval_sets.correct_images(judge, images, labels, prompts)
            tables.append(geneval_sets.prompt_rows(correct, labels, prompts).assign(**identity(sample_set)))
            advance()
    table = pd.concat(tables)
    columns = ["model", "seed", "temperature", "guidance_scale", "prompt", "task", "correct", "images"]
    with atomic_path(stage.plan.reports / geneval_sets.GENEVAL_TABLE) as temporary:
        table[columns].to_csv(temporary, index=False, lineterminator="\n")
    overall = geneval_sets.overall_scores(table).assign(extractor="geneval", reference=params.references[0])
    log_scores(overall, stage.params, f"{stage.plan.name}, geneval")


def reconstruct(split: str, device: torch.device) -> np.ndarray:
    """Images of a split, encoded and decoded, uint8 [N, H, W, 3]: what no generator over these tokens can beat.

    They are a file that is read as it is needed, like the sets of samples.
    """
    data, tokenizer = open_split(split, device), open_tokenizer(device)
    batch = images_of_a_pass(data.images.shape[1])
    path = OWN_WORK / "reconstructions.npy"
    with (
        atomic_path(path) as temporary,
        array_writer(temporary, data.images.shape, np.uint8) as append,
        torch.inference_mode(),
    ):
        for start in range(0, len(data), batch):
            tokens, _ = data.batch(np.arange(start, min(start + batch, len(data))))
            append(to_uint8(tokenizer.decode(tokens)))
    return np.load(path, mmap_mode="r")


def whole_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The scores without those of alignments on their way."""
    return table[table["steps"].isna()] if "steps" in table else table


def log_scores(table: pd.DataFrame, params: Params, source: str) -> None:
    """Adds final scores, against the main reference, to the MLflow run of the model each set was drawn from.

    A score is named score/METRIC EXTRACTOR; settings other than the main one are appended to the name. The base has
    one run for all its sampling seeds: their mean.
    """
    table = table[table["reference"] == params.score.references[0]]
    metrics = [name for name in (*SCORE_TITLES, "overall") if name in table]
    scores: dict[str, dict[str, float]] = {}
    headers: dict[str, Header] = {}
    outputs: dict[str, str] = {}
    for generator, part in table.groupby(table["generator"]):
        run = read_texts(Path(generator) / RUN_FILE, ["experiment", "stage", "key"], remedy(Path(generator)))
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
        scores[run["key"]], outputs[run["key"]] = row, outputs_hash(Path(generator))
    add_scores(scores, headers, outputs, source)


def identity(sample_set: SampleSet) -> dict[str, Any]:
    """Columns that name a set."""
    on_its_way = {} if sample_set.steps is None else {"steps": sample_set.steps}
    return on_its_way | {
        "model": sample_set.model,
        "generator": str(sample_set.trained),
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--rivals", action="store_true", help="the sets of the table of rivals")
    run_stage(plan, work, parser)
