"""Scores: what every set is compared with, and what each set of a variant has, under every extractor and by GenEval."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipelines.config.params import Params, ScoreParams
from pipelines.config.paths import CLASSIFIERS, OWN_WORK, REFERENCES, WORK, remedy
from pipelines.config.variant import ImageSet, Variant
from pipelines.frame.inputs import open_prompts, open_samples, open_split, open_subset, open_tokenizer
from pipelines.frame.progress import progress
from pipelines.frame.stage import Stage
from pipelines.variants import judging
from pipelines.variants.protocol import facts_of_protocol
from pipelines.variants.score_files import GENEVAL_TABLE, SCORES_TABLE
from vapi_core.arrays import array_writer
from vapi_core.data.images import images_of_a_pass, to_uint8
from vapi_core.files import atomic_path, write_json
from vapi_core.models.classifier import accuracy
from vapi_core.scoring.features import (
    Extractor,
    Features,
    cached_features,
    load_extractor,
    load_features,
    save_features,
)
from vapi_core.scoring.fidelity import (
    ReferenceBatch,
    cached_statistics,
    feature_statistics,
    fidelity,
    frechet_distance,
    load_reference_batch,
)

PROTOCOL = REFERENCES / "protocol.json"
SEED = 0  # of KID's subsets and the Inception Score's splits: the same for all sets
GENEVAL_COLUMNS = ["variant", "seed", "temperature", "guidance_scale", "prompt", "task", "correct", "images"]


def open_extractor(name: str, params: Params) -> Extractor:
    if name.endswith("-classifier"):
        weights = CLASSIFIERS / name.removesuffix("-classifier")
        return load_extractor("classifier", weights=weights, remedy=remedy(weights))
    if name == "inception-v3-compat":
        return load_extractor(name, weights=params.score.inception_checkpoint)
    return load_extractor(name, input_size=params.score.input_size)


def features_of_reference(extractor: str, reference: str) -> Path:
    """File of what an extractor says about the images of a reference."""
    return REFERENCES / extractor / f"{reference}.npz"


def open_reference(extractor: str, reference: str) -> Features:
    """What an extractor says about the images of a reference. Raises FileError where that is missing or damaged."""
    return load_features(features_of_reference(extractor, reference), remedy(REFERENCES))


def prepare_references(stage: Stage) -> None:
    """Writes what every extractor says about every reference, and measures what the tokenizer alone costs."""
    params, subset = stage.params.score, open_subset()
    batch, held_out = open_reference_batch(stage.params), params.reference_splits[0]
    references = {split: subset.split(split)[0] for split in params.references} if batch is None else {}
    if batch is not None:
        references[params.references[0]] = batch.images
    reconstructions = reconstruct(held_out, stage.device, stage.params.generator.family)
    for name in params.extractors:
        extractor = open_extractor(name, stage.params)
        features = partial(
            cached_features, WORK / "features", extractor=extractor, batch_size=params.batch_size, device=stage.device
        )
        for reference, images in references.items():
            save_features(features_of_reference(name, reference), features(images=images))
        stage.metrics[f"reconstruction_fid {name}"] = frechet_distance(
            feature_statistics(features(images=reconstructions)["features"]),
            feature_statistics(features(images=subset.split(held_out)[0])["features"]),
        )
    if params.geneval is not None and params.geneval.detector == "scenes":
        assert subset.annotations is not None
        judge = judging.open_judge(params.geneval, stage.device)
        stage.metrics |= judging.measure_judge(judge, subset, held_out)
        annotations = subset.annotations[slice(*subset.splits[held_out])]
        stage.metrics |= judging.reconstruction_metrics(judge, reconstructions, annotations)
    write_json(PROTOCOL, facts_of_protocol(params, batch))


def score_variant(stage: Stage, variant: Variant) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Writes the scores of all sets of a variant; returns them, one row per set, extractor and reference, and those of
    GenEval, one row per set and prompt."""
    params, batch = stage.params.score, open_reference_batch(stage.params)
    rows: list[dict[str, Any]] = []
    for name in params.extractors:
        extractor = open_extractor(name, stage.params)
        references = {reference: open_reference(name, reference) for reference in params.references}
        with progress(f"{stage.plan.name}, {name}", len(variant.sets), "sets") as advance:
            for image_set in variant.sets:
                images, labels = open_samples(image_set.directory)
                samples = cached_features(WORK / "features", images, extractor, params.batch_size, stage.device)
                for reference, features in references.items():
                    scores = score_images(samples, features, labels, name, params, batch)
                    rows.append({**identity(image_set), "extractor": name, "reference": reference, **scores})
                advance()
    table = pd.DataFrame(rows)
    judged = None if params.geneval is None else judge_sets(stage, variant)
    with atomic_path(variant.scores) as temporary:
        temporary.mkdir()
        table.to_csv(temporary / SCORES_TABLE, index=False, float_format="%.6g", lineterminator="\n")
        if judged is not None:
            judged.to_csv(temporary / GENEVAL_TABLE, index=False, lineterminator="\n")
    return table, judged


def open_reference_batch(params: Params) -> ReferenceBatch | None:
    """The batch that is the reference instead of splits, if the params name one."""
    path = params.score.reference_batch
    return None if path is None else load_reference_batch(path)


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


def judge_sets(stage: Stage, variant: Variant) -> pd.DataFrame:
    """How many images of every prompt GenEval finds correct, of all whole sets of a variant."""
    assert stage.params.score.geneval is not None
    judge, prompts = judging.open_judge(stage.params.score.geneval, stage.device), open_prompts()
    tables, sets = [], [image_set for image_set in variant.sets if image_set.steps is None]
    with progress(f"{stage.plan.name}, geneval", len(sets), "sets") as advance:
        for image_set in sets:
            images, labels = open_samples(image_set.directory)
            correct = judging.correct_images(judge, images, labels, prompts)
            tables.append(judging.prompt_rows(correct, labels, prompts).assign(**identity(image_set)))
            advance()
    return pd.concat(tables)[GENEVAL_COLUMNS]


def reconstruct(split: str, device: torch.device, family: str) -> np.ndarray:
    """Images of a split, encoded and decoded, uint8 [N, H, W, 3]: what no generator over these tokens can beat.

    They are a file that is read as it is needed, like the sets of samples.
    """
    data, tokenizer = open_split(split, device, family), open_tokenizer(device)
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


def identity(image_set: ImageSet) -> dict[str, Any]:
    """Columns that name a set. `steps` is missing where the alignment is whole."""
    return {
        "variant": image_set.variant,
        "steps": image_set.steps,
        "seed": image_set.seed,
        "temperature": image_set.config.temperature,
        "guidance_scale": image_set.config.guidance_scale,
    }
