"""A variant's scores as metrics: of the MLflow runs of its seeds, and of its stage, for `dvc exp show` and sweeps.

A metric is named score/SCORE/EXTRACTOR, e.g. "score/fid/scorer", of the network of data/classifiers/scorer. A setting
other than the main one is appended: "score/fid/scorer/T0.8-g1.0".
"""

from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.config.params import Params, decimal, short_name
from pipelines.config.paths import RUN_FILE, remedy
from pipelines.config.variant import GRID, Variant
from pipelines.frame.stage import Stage, outputs_hash
from pipelines.tracking.journal import Header
from pipelines.tracking.runs import SAMPLED, add_scores, flatten, now, stage_key
from pipelines.variants.score_files import SCORE_TITLES, overall_scores, whole_alignments
from vapi_core.files import read_texts

COMPARED = ("fid", "recall", "accuracy", "overall")


def report_scores(stage: Stage, variant: Variant, table: pd.DataFrame, judged: pd.DataFrame | None) -> None:
    """Adds the scores to the run of each seed, and the means over seeds of the main ones to the stage's metrics."""
    by_seed = metrics_by_seed(stage.params, variant, table, judged)
    headers = {seed: header_of(stage.params, variant, seed) for seed in variant.seeds}
    add_scores(
        {headers[seed].key: by_seed[seed] for seed in variant.seeds},
        {header.key: header for header in headers.values()},
        {headers[seed].key: outputs_hash(variant.output(seed)) for seed in variant.seeds},
        images={headers[seed].key: pictures_of(variant, seed) for seed in variant.seeds},
    )
    for name in filter(is_compared, by_seed[variant.seeds[0]]):
        stage.metrics[name] = sum(by_seed[seed][name] for seed in variant.seeds) / len(variant.seeds)


def is_compared(name: str) -> bool:
    """Whether a metric stands in the stage's file, whose columns `dvc metrics show` prints: the main scores, at the
    main setting. The table of scores and the runs have all."""
    _, score, *rest = name.split("/")
    return score in COMPARED and len(rest) == 1


def metrics_by_seed(
    params: Params, variant: Variant, table: pd.DataFrame, judged: pd.DataFrame | None
) -> dict[int, dict[str, float]]:
    """Seed -> metric -> value: the scores of whole alignments against the main reference, and those of GenEval."""
    main = params.score.references[0]
    scores = whole_alignments(table)
    scores = scores[scores["reference"] == main]
    if judged is not None:
        scores = pd.concat([scores, overall_scores(judged).assign(extractor="geneval", reference=main)])
    return {seed: metrics_of(scores[scores["seed"] == seed], variant) for seed in variant.seeds}


def metrics_of(scores: pd.DataFrame, variant: Variant) -> dict[str, float]:
    """Metric -> value, of the scores of one seed against the main reference."""
    metrics: dict[str, float] = {}
    main = variant.samplings[0]
    for row in scores.to_dict("records"):
        temperature, guidance = row["temperature"], row["guidance_scale"]
        is_main = (temperature, guidance) == (main.temperature, main.guidance_scale)
        setting = "" if is_main else f"/T{decimal(temperature)}-g{decimal(guidance)}"
        extractor = short_name(row["extractor"])
        for name in (*SCORE_TITLES, "overall"):
            if pd.notna(row.get(name)):
                metrics[f"score/{name}/{extractor}{setting}"] = float(row[name])
    return metrics


def pictures_of(variant: Variant, seed: int) -> list[tuple[str, Path, int]]:
    """Name, PNG and step of the first images of every set of a seed, at the step after which it was drawn."""
    last = 0 if variant.alignment is None else variant.alignment.optimization.steps
    pictures = []
    for image_set in variant.sets:
        config, steps = image_set.config, last if image_set.steps is None else image_set.steps
        path = image_set.directory / GRID
        if image_set.seed == seed and path.is_file():
            main = config == variant.samplings[0]
            setting = f"T{decimal(config.temperature)}-g{decimal(config.guidance_scale)}"
            name = SAMPLED if main else f"{SAMPLED} {setting}"
            pictures.append((name, path, steps))
    return pictures


def header_of(params: Params, variant: Variant, seed: int) -> Header:
    """The run of a seed. An alignment has made its own; a control, which trains nothing, is made one by its scores."""
    output, name = variant.output(seed), variant.run_name(seed)
    run = read_texts(output / RUN_FILE, ["key", "experiment"], remedy(output))
    tags = variant.tags | {"profile": params.profile}
    if variant.alignment is not None:
        return Header(run["experiment"], name, run["key"], now(), tags=tags)
    settings: dict[str, Any] = {"variant": variant.name, "seed": seed}
    key = stage_key("control", settings | {"samplings": [vars(c) for c in variant.samplings]}, [run["key"]])
    return Header(params.profile, name, key, now(), flatten(settings), tags)
