"""Stage `report`: what was run, on what, what came of it. Every number is read from the files of the other stages."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.comparison import compare, nested, summarize
from pipelines.figures import plot_curves, plot_precision_recall, side_by_side
from pipelines.geneval_sets import GENEVAL_TABLE, compare_geneval, geneval_metrics, summarize_geneval
from pipelines.geneval_text import geneval_findings, geneval_sections
from pipelines.inputs import open_samples, read_scores
from pipelines.params import Params
from pipelines.paths import BASE, CURVES, REPORTS, SCORES, STAGE_METRICS, remedy
from pipelines.protocol import PROTOCOL
from pipelines.report_text import write_report
from pipelines.stage import Stage, StagePlan, run_stage
from pipelines.stages.sample import SampleSet, grid_items, plan_sets
from pipelines.stages.score import TABLE
from vapi_core.files import atomic_path, read_json, write_json

FIGURES = REPORTS / "figures"
TABLES = REPORTS / "tables"
CURVE_NAMES = ["reward", "reward_mse", "reward_perceptual", "reward_spread", "ce", "kl", "entropy", "gradient_norm"]


def plan(params, arguments) -> StagePlan:
    return StagePlan("report", None, {}, (SCORES,))


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params
    scores = read_scores(REPORTS / TABLE)
    summary = summarize(scores)
    comparisons = compare(scores, params.sample.temperature)
    tables = {"summary": summary, "comparisons": comparisons}
    if params.score.geneval is not None:
        judged = read_scores(REPORTS / GENEVAL_TABLE)
        tables |= {
            "geneval": summarize_geneval(judged),
            "geneval-differences": compare_geneval(judged, params.sample.temperature),
        }
    with atomic_path(TABLES) as temporary:
        temporary.mkdir()
        for name, table in tables.items():
            table.to_csv(temporary / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    behind = stages_behind(params)
    stages = {name: read_json(STAGE_METRICS / f"{name}.json", f"Run `dvc repro {name}`.") for name in behind}
    metrics = nested(summary[summary["reference"] == params.score.references[0]])
    lines, sections = [], []
    if params.score.geneval is not None:
        metrics["geneval"] = geneval_metrics(tables["geneval"])
        lines = geneval_findings(tables["geneval-differences"], params)
        sections = geneval_sections(tables["geneval"], tables["geneval-differences"], stages.get("score", {}), params)
    write_json(REPORTS / "metrics.json", metrics)
    pictures(stage, scores)
    facts = read_json(REPORTS / PROTOCOL, remedy(SCORES))
    write_report(REPORTS / "report.md", params, summary, comparisons, stages, facts, lines, sections)


def stages_behind(params: Params) -> list[str]:
    """Stages that the report of these params builds on, as dvc.yaml calls them; the folders of reports may hold those of
    another profile too."""
    methods, seeds = params.align.methods, params.align.seeds
    single = ("generator", "sample-base", "score", "subset", "tokenize", "tokenizer")
    alignments = [f"align@{method}-{seed}" for method in methods for seed in seeds]
    samples = [f"sample@{method}" for method in methods]
    return sorted([*single, "classifier@reward", "classifier@scorer", *alignments, *samples])


def pictures(stage: Stage, scores: pd.DataFrame) -> None:
    """The figures of the report."""
    params = stage.params
    sets = {model: plan_sets(params, model) for model in (BASE, *params.align.methods)}
    main, guidance = params.sample.temperature, params.sample.guidance_scales[0]
    control = best_control(scores, params.score.extractors[0], params.score.references[0], main)
    chosen: dict[str, SampleSet] = {}
    for model, planned in sets.items():
        for s in planned:
            if s.seed != params.align.seeds[0]:
                continue
            if (s.config.temperature, s.config.guidance_scale) == (main, guidance):
                chosen[model] = s
            elif (s.config.temperature, s.config.guidance_scale) == (control, 1.0):
                chosen[f"{model}, temperature {control}"] = s
    images = {title: open_samples(s.directory)[0] for title, s in chosen.items()}
    grids = {title: array[grid_items(params, len(array))] for title, array in images.items()}
    side_by_side(FIGURES / "samples.png", grids, columns=10)
    aligned = [name for name in stages_behind(params) if name.startswith("align@")]
    curves = {name.partition("@")[2]: read_curves(CURVES / f"{name}.csv") for name in aligned}
    plot_curves(FIGURES / "curves.png", curves, CURVE_NAMES)
    plot_precision_recall(FIGURES / "precision-recall.png", scores[scores["reference"] == params.score.references[0]])


def best_control(scores: pd.DataFrame, extractor: str, reference: str, main: float) -> float | None:
    """Temperature of the base, other than the main one, that has the lowest FID without guidance; None if there is none."""
    base = scores[
        (scores["model"] == BASE)
        & (scores["guidance_scale"] == 1.0)
        & (scores["extractor"] == extractor)
        & (scores["reference"] == reference)
    ]
    means = {t: float(base["fid"][base["temperature"] == t].mean()) for t in base["temperature"].unique() if t != main}
    return min(means, key=lambda t: means[t]) if means else None


def read_curves(path: Path) -> dict[str, np.ndarray]:
    """Metric -> values over steps; NaN where a step did not measure it."""
    return {str(name): column.to_numpy() for name, column in pd.read_csv(path).drop(columns="step").items()}


if __name__ == "__main__":
    run_stage(plan, work)
