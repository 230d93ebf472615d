"""A finished run as its tables find it: scores, curves, sets of images and metrics of stages, made up."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.config.loading import check_params
from pipelines.config.params import Params
from pipelines.config.paths import CURVES, STAGE_METRICS
from pipelines.config.variant import Variant, all_variants, overlay
from pipelines.frame.inputs import IMAGES, LABELS
from pipelines.variants.score_files import GENEVAL_TABLE, SCORES_TABLE
from pipelines.variants.scoring import identity
from vapi_core.arrays import write_manifest
from vapi_core.files import read_yaml, write_json

ROOT = Path(__file__).parents[3]
NO_PROTOCOL = {"reference_batch": None, "inception_sha256": None}
# scores of variants of params.yaml, without guidance; the base's other temperatures are named by these
FID = {"base": 5.0, "va-pi": 3.0, "cross-entropy": 4.9, 0.8: 4.0, 0.6: 4.2}
ACCURACY = {"base": 0.6, "va-pi": 0.9, "cross-entropy": 0.61, 0.8: 0.8, 0.6: 0.85}


# what the tests count on, whatever is reported
RUN = {
    "align": {"seeds": [4, 5, 6]},
    "variants": {"cross-entropy": {"align": {"keep_every": 20}}},
    "controls": {"base": {"temperatures": [1.0, 0.8, 0.6]}, "temperatures": {"temperatures": [0.9, 0.7]}},
    "sample": {"guidance_scales": [1.0, 1.5]},
    "score": {"extractors": ["efficientnet-lite0", "scorer-classifier"]},
}


def params_with(**changes: Any) -> Params:
    """`content_with`, typed."""
    return check_params(content_with(**changes))


def content_with(**changes: Any) -> dict[str, Any]:
    """params.yaml with the run of these tests and changes, nested as there; `seeds` of alignments for short."""
    if "seeds" in changes:
        changes["align"] = {**changes.get("align", {}), "seeds": changes.pop("seeds")}
    content = overlay(read_yaml(ROOT / "params.yaml"), RUN)
    del content["controls"]["guided"]  # the base is drawn with guidance
    content["tables"].remove("replication")
    return overlay(content, changes)


def write_run(
    params: Params,
    tables: tuple[str, ...] = ("experiment",),
    fid: dict[Any, float] = FID,
    accuracy: dict[Any, float] = ACCURACY,
    spread: float = 0.001,
    blind: tuple[str, ...] = (),
    samples: int = 1000,
) -> None:
    """Writes below the working directory what all variants of some tables left.

    Args:
        fid, accuracy: of each variant, or temperature; 4 and 0.7 where they do not tell. Seeds differ by about `spread`
            of it.
        blind: extractors under which reconstructions are worse than any sample.
    """
    floors = {f"reconstruction_fid {name}": 99.0 if name in blind else 0.2 for name in params.score.extractors}
    for name, metrics in {"references": floors, "generator": {"parameters": 9e5}, "tokenizer": {}}.items():
        write_json(STAGE_METRICS / f"{name}.json", metrics | {"seconds": 1.0, "peak_memory_mb": 2.0})
    random = np.random.default_rng(0)
    for variant in all_variants(params):
        if variant.table in tables:
            write_scores(params, variant, fid, accuracy, spread, random, samples)
            if params.score.geneval is not None:
                write_decisions(variant, accuracy)


def write_scores(params, variant: Variant, fid, accuracy, spread, random, samples) -> None:
    rows = []
    for image_set in variant.sets:
        config = image_set.config
        name = variant.name if config.temperature == params.sample.temperature else config.temperature
        for extractor in params.score.extractors:
            noise = 1 + spread * random.normal(size=4)
            scores = {
                "fid": fid.get(name, 4.0) * noise[0],
                "is_mean": 9 * noise[1],
                "precision": 0.7 * noise[2],
                "recall": 0.6 * noise[3],
                "samples": samples,
            }
            if extractor == "scorer-classifier":
                scores["accuracy"] = accuracy.get(name, 0.7) * noise[3]
            for reference in params.score.references:
                rows.append({**identity(image_set), "extractor": extractor, "reference": reference, **scores})
    variant.scores.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(variant.scores / SCORES_TABLE, index=False)


def write_decisions(variant: Variant, accuracy) -> None:
    """GenEval's decisions over ten prompts of two tasks."""
    rows = [
        {
            **identity(image_set),
            "prompt": prompt,
            "task": "colors" if prompt < 5 else "counting",
            "correct": round(10 * accuracy.get(variant.name, 0.7)) - (prompt + image_set.seed) % 2,
            "images": 10,
        }
        for image_set in variant.sets
        if image_set.steps is None
        for prompt in range(10)
    ]
    pd.DataFrame(rows).to_csv(variant.scores / GENEVAL_TABLE, index=False)


def write_images(params: Params, count: int = 30) -> None:
    """Random images of every set, and curves of every alignment."""
    random = np.random.default_rng(0)
    for variant in all_variants(params):
        for image_set in variant.sets:
            image_set.directory.mkdir(parents=True, exist_ok=True)
            np.save(image_set.directory / IMAGES, random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))
            np.save(image_set.directory / LABELS, np.arange(count) % 10)
            write_manifest(image_set.directory, {"kind": "samples", "shape": [count, 8, 8, 3]}, (IMAGES, LABELS))
        if variant.alignment is not None:
            (CURVES / variant.name).mkdir(parents=True)
            for seed in variant.seeds:
                curve = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "ce": [3.0, None, 1.0]})
                if variant.name != "cross-entropy":
                    curve["reward"] = [-3.0, -2.0, -1.0]
                curve.to_csv(CURVES / variant.name / f"{seed}.csv", index=False)
