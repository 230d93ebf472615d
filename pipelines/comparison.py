"""Scores over seeds: mean and uncertainty of every setting, and which differences from VA-π count as one.

The tables of `report` and `rivals` come from here. Scores are the rows of stage `score`, one per image set.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipelines.paths import BASE
from vapi_core.scoring.statistics import (
    bootstrap_interval,
    fixed_sequence,
    holm,
    mean_and_standard_error,
    paired_difference,
)

SUBJECT, CONTINUED = "va-pi", "cross-entropy"
SCORE_TITLES = {
    "fid": "FID",
    "is_mean": "IS",
    "kid_mean": "KID",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
}
LOWER_IS_BETTER = ("fid", "kid_mean")
SETTING = ["model", "temperature", "guidance_scale"]
LEVEL = 0.05
TEST = (
    f"Student's paired t-test over seeds, two-sided; a difference is called one where the adjusted p is below {LEVEL}. FID "
    "without guidance is the main question. It is asked in an order fixed beforehand: VA-π against the base, against the "
    "base trained further with cross-entropy, against the base at its other temperatures from high to low; a difference "
    "counts only if all before it do, and p is the largest so far. All other p-values are adjusted by Holm for the "
    "comparisons of one score under one extractor and one guidance scale. Intervals are not adjusted. Where no difference "
    "is called one, that is no evidence of equality"
)


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard error and bootstrap interval over seeds of every score, one row per setting, extractor, reference."""
    rows: list[dict[str, Any]] = []
    keys = [*SETTING, "extractor", "reference"]
    for key, group in scores.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True))
        row |= {"seeds": len(group), "samples": group["samples"].iloc[0]}
        for name in SCORE_TITLES:
            if name in group and group[name].notna().all():
                values = group[name].to_numpy()
                row[name], row[f"{name}_se"] = mean_and_standard_error(values)
                row[f"{name}_low"], row[f"{name}_high"] = bootstrap_interval(values)
        rows.append(row)
    return pd.DataFrame(rows)


def match_temperatures(summary: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """For every method, the temperature of the base whose precision comes nearest to the method's, without guidance."""
    rows = []
    plain = summary[summary["guidance_scale"] == 1.0]
    for extractor, part in plain.groupby("extractor", sort=False):
        base = part[part["model"] == BASE]
        for _, method in part[(part["model"] != BASE) & (part["temperature"] == temperature)].iterrows():
            nearest = base.loc[(base["precision"] - method["precision"]).abs().idxmin()]
            rows.append(
                {
                    "extractor": extractor,
                    "model": method["model"],
                    "precision": method["precision"],
                    "temperature": nearest["temperature"],
                    "base_precision": nearest["precision"],
                }
            )
    return pd.DataFrame(rows, columns=["extractor", "model", "precision", "temperature", "base_precision"])


def compare(scores: pd.DataFrame, temperature: float, matches: pd.DataFrame | None = None) -> pd.DataFrame:
    """VA-π against every other model at the same guidance; every score, paired by seed. The test is `TEST`.

    Of the base's other temperatures all are compared, or, with `matches`, the one that has VA-π's precision. Columns:
    the setting compared `against`, both means, their difference (VA-π minus the other) with its standard error, t
    interval and p-values, and the verdict on VA-π: win, tie or loss.
    """
    rows: list[dict[str, Any]] = []
    for (extractor, reference, guidance), part in scores.groupby(
        ["extractor", "reference", "guidance_scale"], sort=False
    ):
        groups = {
            (str(model), float(str(t))): group.sort_values("seed")
            for (model, t), group in part.groupby(["model", "temperature"], sort=False)
        }
        subject = groups.get((SUBJECT, temperature))
        if subject is None:
            continue
        others = [key for key in groups if key[1] == temperature and key[0] != SUBJECT]
        if matches is None:
            others += [key for key in groups if key[0] == BASE and key[1] != temperature]
        else:
            matched = matches[(matches["extractor"] == extractor) & (matches["model"] == SUBJECT)]["temperature"]
            others += [(BASE, t) for t in matched if (BASE, t) in groups and (BASE, t) not in others]
        for name in SCORE_TITLES:
            if name not in part or part[name].isna().any():
                continue
            found = []
            for key in others:
                assert list(groups[key]["seed"]) == list(subject["seed"])
                ours, theirs = subject[name].to_numpy(), groups[key][name].to_numpy()
                found.append(
                    {"against": key[0], "temperature": key[1], "value": ours.mean(), "other": theirs.mean()}
                    | vars(paired_difference(ours, theirs))
                )
            main = name == "fid" and guidance == 1.0
            order = [others.index(key) for key in main_question(others, temperature)] if main else []
            for row, p in zip(found, adjust([row["p_value"] for row in found], order), strict=True):
                sign = -1 if name in LOWER_IS_BETTER else 1
                verdict = "tie" if not p < LEVEL else "win" if sign * row["mean"] > 0 else "loss"
                setting = {"extractor": extractor, "reference": reference, "guidance_scale": guidance, "score": name}
                rows.append({**setting, **row, "adjusted_p": p, "verdict": verdict})
    return pd.DataFrame(rows)


def main_question(others: Sequence[tuple[str, float]], temperature: float) -> list[tuple[str, float]]:
    """Those of `others`, each a model and a temperature, that the main question is about, in its order."""
    sharpened = sorted((key for key in others if key[0] == BASE and key[1] != temperature), key=lambda key: -key[1])
    return [*(key for key in ((BASE, temperature), (CONTINUED, temperature)) if key in others), *sharpened]


def adjust(p_values: Sequence[float], order: Sequence[int]) -> np.ndarray:
    """P-values adjusted: those in `order` as a fixed sequence, the rest by Holm."""
    p = np.asarray(p_values)
    rest = [i for i in range(len(p)) if i not in order]
    adjusted = np.empty_like(p)
    adjusted[list(order)], adjusted[rest] = fixed_sequence(p[list(order)]), holm(p[rest])
    return adjusted


def nested(summary: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """extractor -> setting -> score, its standard error and interval, for `dvc metrics diff`."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for row in summary.to_dict("records"):
        setting = f"{row['model']} T={row['temperature']} g={row['guidance_scale']}"
        names = [f"{name}{end}" for name in SCORE_TITLES for end in ("", "_se", "_low", "_high")]
        values = {name: float(f"{row[name]:.6g}") for name in names if pd.notna(row.get(name))}
        metrics.setdefault(row["extractor"], {})[setting] = {**values, "samples": row["samples"]}
    return metrics
