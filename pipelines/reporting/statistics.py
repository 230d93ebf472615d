"""Scores over seeds: means and intervals, and the one rule by which a row of a table is better or worse than another.

The rule, for every table. Rows are compared by Student's paired t-test over seeds, which alignment and sampling follow.
The claims of one score and one guidance scale are a family, under all extractors together; its p-values are adjusted by
Holm. Where a table's main question has an order, its claims are tested in that order and stop at the first that finds
no difference: those behind it are not tested. Intervals are Student's at 95 %, not adjusted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipelines.config.params import decimal
from pipelines.variants.score_files import SCORE_TITLES
from vapi_core.scoring.geneval.comparison import task_scores
from vapi_core.scoring.statistics import (
    holm,
    mean_and_standard_error,
    paired_difference,
    smallest_difference,
    t_interval,
)

LOWER_IS_BETTER = ("fid", "kid_mean")
SETTING = ["row", "temperature", "guidance_scale"]
LEVEL = 0.05
BETTER, WORSE, NO_DIFFERENCE, NOT_TESTED = "better", "worse", "no difference found", "not tested"


@dataclass(frozen=True)
class Claim:
    """One row of a table is better than another, which a test may confirm, reverse or leave open."""

    text: str
    better: str
    worse: str


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard error and t interval over seeds of every score, one row per setting, extractor and reference.

    `scores` has one row per set, extractor and reference: row, temperature, guidance_scale, seed, and the scores.
    """
    rows: list[dict[str, Any]] = []
    keys = [*SETTING, "extractor", "reference"]
    for key, group in scores.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True)) | {"seeds": len(group)}
        if "samples" in group and group["samples"].notna().all():
            row["samples"] = int(group["samples"].iloc[0])
        for name in SCORE_TITLES:
            if name in group and group[name].notna().all():
                values = group[name].to_numpy()
                row[name], row[f"{name}_se"] = mean_and_standard_error(values)
                row[f"{name}_low"], row[f"{name}_high"] = t_interval(values)
        rows.append(row)
    return pd.DataFrame(rows)


def compare(
    scores: pd.DataFrame, claims: Sequence[Claim], names: Sequence[str], main: tuple[str, float] | None = None
) -> pd.DataFrame:
    """Every claim about every score and guidance scale, under every extractor, with its verdict.

    Args:
        scores: as of `summarize`, against one reference.
        names: of the scores that the claims are about.
        main: score and guidance scale whose claims are tested in their order; None: no claim waits for another.

    Returns:
        One row per comparison: extractor, guidance_scale, score, the claim, both means, their difference (better minus
        worse) with standard error, t interval and p-values, the smallest one that would have been found among as many
        comparisons, and a verdict on the row that is claimed to be better.
    """
    found: list[dict[str, Any]] = []
    for guidance, part in scores.groupby("guidance_scale", sort=False):
        for name in names:
            family = list(_differences(part, claims, name))
            ordered = main is not None and (name, guidance) == main
            adjusted = in_order(family) if ordered else list(holm([row["p_value"] for row in family]))
            for row, p in zip(family, adjusted, strict=True):
                together = sum(other["text"] == row["text"] for other in family) if ordered else len(family)
                smallest = smallest_difference(row["standard_error"], row["pairs"], 1 - LEVEL / together)
                verdict = verdict_of(row["mean"], p, name in LOWER_IS_BETTER)
                found.append(
                    {
                        "guidance_scale": guidance,
                        "score": name,
                        **row,
                        "smallest": smallest,
                        "adjusted_p": p,
                        "verdict": verdict,
                    }
                )
    return pd.DataFrame(found)


def _differences(scores: pd.DataFrame, claims: Sequence[Claim], name: str) -> Iterator[dict[str, Any]]:
    """The differences that claims are about, as far as their rows have this score; claim by claim."""
    if name not in scores:
        return
    groups = dict(iter(scores[scores[name].notna()].groupby(["row", "extractor"], sort=False)))
    for claim in claims:
        for extractor in scores["extractor"].unique():
            pair = [(row, extractor) for row in (claim.better, claim.worse)]
            if not groups.keys() >= set(pair):
                continue
            better, worse = (groups[key].sort_values("seed") for key in pair)
            assert list(better["seed"]) == list(worse["seed"])
            a, b = better[name].to_numpy(), worse[name].to_numpy()
            difference = paired_difference(a, b)
            yield {
                "extractor": extractor,
                **asdict(claim),
                "better_mean": a.mean(),
                "worse_mean": b.mean(),
                **asdict(difference),
            }


def in_order(family: Sequence[dict[str, Any]]) -> list[float]:
    """Adjusted p-values of comparisons whose claims are tested in order; NaN where one is not tested any more.

    A claim's comparisons, one for each extractor, are adjusted among each other. The claims behind one of which any
    comparison finds no difference are not tested. A p-value is the largest so far.
    """
    adjusted: list[float] = []
    largest, stopped = 0.0, False
    for text in dict.fromkeys(row["text"] for row in family):
        values = holm([row["p_value"] for row in family if row["text"] == text])
        if stopped or np.isnan(values).any():  # a single seed has no p-value
            adjusted += [float("nan")] * len(values)
            stopped = True
            continue
        adjusted += [max(largest, p) for p in values]
        largest = max(adjusted)
        stopped = not largest < LEVEL
    return adjusted


def verdict_of(difference: float, adjusted_p: float, lower_is_better: bool) -> str:
    """What a difference, better minus worse, says of the row that is claimed to be better."""
    if np.isnan(adjusted_p):
        return NOT_TESTED
    if not adjusted_p < LEVEL:
        return NO_DIFFERENCE
    return BETTER if (difference < 0) == lower_is_better else WORSE


def match_temperatures(summary: pd.DataFrame, base: str, main: float) -> pd.DataFrame:
    """For every aligned row, the temperature of the base whose precision comes nearest to its own, without guidance.

    Columns: extractor, row, precision, temperature, base_row, base_precision. The base's rows are those whose name is
    `base`, or whose temperature is not the main one: only the base is drawn at others.
    """
    rows = []
    plain = summary[(summary["guidance_scale"] == 1.0) & summary["precision"].notna()]
    for extractor, part in plain.groupby("extractor", sort=False):
        is_base = (part["row"] == base) | (part["temperature"] != main)
        for _, method in part[~is_base].iterrows():
            bases = part[is_base]
            nearest = bases.loc[(bases["precision"] - method["precision"]).abs().idxmin()]
            rows.append(
                {
                    "extractor": extractor,
                    "row": method["row"],
                    "precision": method["precision"],
                    "temperature": nearest["temperature"],
                    "base_row": nearest["row"],
                    "base_precision": nearest["precision"],
                }
            )
    return pd.DataFrame(rows, columns=["extractor", "row", "precision", "temperature", "base_row", "base_precision"])


def blind_extractors(
    summary: pd.DataFrame, base: str, guidance: float, reconstruction_fid: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """Extractors under which images that were only encoded and decoded do not score better than the base's samples.

    What they measure is the tokenizer, not the generator. The base is taken at its own temperature and a guidance
    scale. Returns extractor -> (FID of reconstructions, of the base).
    """
    blind = {}
    for _, row in summary[(summary["row"] == base) & (summary["guidance_scale"] == guidance)].iterrows():
        floor = reconstruction_fid.get(row["extractor"])
        if floor is not None and pd.notna(row.get("fid")) and not floor < row["fid"]:
            blind[row["extractor"]] = (floor, row["fid"])
    return blind


def nested(summary: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """extractor -> setting -> score, its standard error and interval, for `dvc metrics diff`."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for row in summary.to_dict("records"):
        setting = f"{row['row']} g={decimal(row['guidance_scale'])}"
        names = [f"{name}{end}" for name in SCORE_TITLES for end in ("", "_se", "_low", "_high")]
        values = {name: float(f"{row[name]:.6g}") for name in names if pd.notna(row.get(name))}
        metrics.setdefault(row["extractor"], {})[setting] = {**values, "seeds": row["seeds"]}
    return metrics


def summarize_tasks(judged: pd.DataFrame) -> pd.DataFrame:
    """GenEval per row, guidance scale and task, over all seeds; its interval is over prompts."""
    rows: list[dict[str, Any]] = []
    keys = ["row", "guidance_scale"]
    for key, part in judged.groupby(keys, sort=False):
        share = part.assign(share=part["correct"] / part["images"])
        shares = share.pivot(index="seed", columns="prompt", values="share").to_numpy()  # [seeds, prompts]
        tasks = part.drop_duplicates("prompt").sort_values("prompt")["task"].tolist()
        rows += [dict(zip(keys, key, strict=True)) | asdict(score) for score in task_scores(shares, tasks)]
    return pd.DataFrame(rows)
