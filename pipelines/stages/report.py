"""Stage `report`: what was run, on what, what came of it. Every number is read from the files of the other stages."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.figures import plot_curves, plot_precision_recall, side_by_side
from pipelines.paths import CURVES, REPORTS, SCORES, STAGE_METRICS
from pipelines.report_text import write_report
from pipelines.stage import Stage, StagePlan, run_stage
from pipelines.stages.sample import BASE, SampleSet, plan_sets
from pipelines.stages.score import SCORE_NAMES, TABLE
from vapi_core.files import atomic_path, write_json
from vapi_core.scoring.statistics import mean_and_standard_error, paired_difference

FIGURES = REPORTS / "figures"
TABLES = REPORTS / "tables"
SETTING = ["model", "temperature", "guidance_scale"]
CURVE_NAMES = ["reward", "reward_mse", "reward_perceptual", "reward_spread", "ce", "kl", "entropy", "gradient_norm"]
PICTURE_IMAGES = 100


def plan(params, arguments) -> StagePlan:
    return StagePlan("report", None, {}, (SCORES,))


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params
    scores = pd.read_csv(TABLE)
    summary = summarize(scores)
    comparisons = compare(scores, params.sample.temperature)
    with atomic_path(TABLES) as temporary:
        temporary.mkdir()
        for name, table in (("summary", summary), ("comparisons", comparisons)):
            table.to_csv(temporary / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    stages = {path.stem: json.loads(path.read_text()) for path in sorted(STAGE_METRICS.glob("*.json"))}
    write_json(REPORTS / "metrics.json", headline_metrics(summary, params.score.reference_splits[0]))
    pictures(stage, scores)
    write_report(REPORTS / "report.md", params, summary, comparisons, stages)


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard error over seeds of every score, one row per setting, extractor and reference."""
    rows: list[dict[str, Any]] = []
    keys = [*SETTING, "extractor", "reference"]
    for key, group in scores.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True))
        row |= {"seeds": len(group), "samples": group["samples"].iloc[0]}
        for name in SCORE_NAMES:
            if name in group and group[name].notna().all():
                row[name], row[f"{name}_se"] = mean_and_standard_error(group[name].to_numpy())
        rows.append(row)
    return pd.DataFrame(rows)


def compare(scores: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """FID of VA-π minus FID of every other setting without guidance, paired by seed (Student's t)."""
    rows: list[dict[str, Any]] = []
    plain = scores[scores["guidance_scale"] == 1.0]
    for (extractor, reference), part in plain.groupby(["extractor", "reference"], sort=False):
        by_setting = {key: g.sort_values("seed")["fid"].to_numpy() for key, g in part.groupby(SETTING[:2], sort=False)}
        aligned = by_setting.pop(("va-pi", temperature), None)
        if aligned is None:
            return pd.DataFrame(rows)
        for (model, other_temperature), fid in by_setting.items():
            d = paired_difference(aligned, fid)
            rows.append(
                {
                    "extractor": extractor,
                    "reference": reference,
                    "against": model,
                    "temperature": other_temperature,
                    "fid": fid.mean(),
                    "va_pi_fid": aligned.mean(),
                    "difference": d.mean,
                    "standard_error": d.standard_error,
                    "low": d.low,
                    "high": d.high,
                    "p_value": d.p_value,
                    "pairs": d.pairs,
                }
            )
    return pd.DataFrame(rows)


def headline_metrics(summary: pd.DataFrame, reference: str) -> dict[str, dict[str, dict[str, float]]]:
    """extractor -> setting -> score, against the main reference, for `dvc metrics diff`."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for row in summary[summary["reference"] == reference].to_dict("records"):
        setting = f"{row['model']} T={row['temperature']} g={row['guidance_scale']}"
        values = {name: float(f"{row[name]:.6g}") for name in SCORE_NAMES if pd.notna(row.get(name))}
        metrics.setdefault(row["extractor"], {})[setting] = values
    return metrics


def pictures(stage: Stage, scores: pd.DataFrame) -> None:
    """The figures of the report."""
    params = stage.params
    sets = {model: plan_sets(params, model) for model in (BASE, *params.align.methods)}
    control = best_control(scores, params.score.extractors[0], params.score.reference_splits[0])
    chosen: dict[str, SampleSet] = {}
    for model, planned in sets.items():
        for s in planned:
            if s.seed != params.align.seeds[0] or s.config.guidance_scale != 1.0:
                continue
            if s.config.temperature == params.sample.temperature:
                chosen[model] = s
            elif s.config.temperature == control:
                chosen[f"{model}, temperature {control}"] = s
    grids = {title: np.load(s.directory / "images.npy", mmap_mode="r")[:PICTURE_IMAGES] for title, s in chosen.items()}
    side_by_side(FIGURES / "samples.png", grids, columns=10)
    curves = {path.stem.partition("@")[2]: read_curves(path) for path in sorted(CURVES.glob("align@*.csv"))}
    plot_curves(FIGURES / "curves.png", curves, CURVE_NAMES)
    plot_precision_recall(
        FIGURES / "precision-recall.png", scores[scores["reference"] == params.score.reference_splits[0]]
    )


def best_control(scores: pd.DataFrame, extractor: str, reference: str) -> float | None:
    """Temperature of the base's best control (lowest FID without guidance), None if there are no controls."""
    base = scores[
        (scores["model"] == BASE)
        & (scores["guidance_scale"] == 1.0)
        & (scores["extractor"] == extractor)
        & (scores["reference"] == reference)
    ]
    means = {t: float(base["fid"][base["temperature"] == t].mean()) for t in base["temperature"].unique() if t != 1.0}
    return min(means, key=lambda t: means[t]) if means else None


def read_curves(path: Path) -> dict[str, np.ndarray]:
    """Metric -> values over steps; NaN where a step did not measure it."""
    return {str(name): column.to_numpy() for name, column in pd.read_csv(path).drop(columns="step").items()}


if __name__ == "__main__":
    run_stage(plan, work)
