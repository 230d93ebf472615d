"""The paper's ablation tables: their numbers, what the paper concludes from them, and whether our cells agree.

Paper: table 5 (noise ratio, GenEval of text to image), figure 4 (regularizer, FID digitised to ±0.1) and table 4 (reward,
FID and IS of LlamaGen-XXL without guidance). Only the shape is comparable: model, data and scores differ.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipelines.comparison import LOWER_IS_BETTER, SCORE_TITLES, SUBJECT
from pipelines.paths import BASE
from vapi_core.scoring.statistics import holm, mean_and_standard_error, paired_difference

# table -> row -> score, as far as the paper has it
PAPER: dict[str, dict[str, dict[str, float]]] = {
    "noise": {
        BASE: {"GenEval": 0.306},
        "0.0": {"GenEval": 0.302},
        "0.25": {"GenEval": 0.315},
        "0.5": {"GenEval": 0.339},
        "0.75": {"GenEval": 0.332},
        "0.95": {"GenEval": 0.329},
    },
    "regularizer": {
        BASE: {"FID": 14.36},
        "ce-0.01": {"FID": 22.2},
        "ce-0.1": {"FID": 7.65},
        "ce-1.0": {"FID": 10.9},
        "kl-0.01": {"FID": 22.5},
        "kl-0.1": {"FID": 8.6},
        "kl-1.0": {"FID": 12.8},
    },
    "reward": {
        BASE: {"FID": 14.36, "IS": 86.55},
        "mse": {"FID": 38.76, "IS": 49.78},  # one row of the paper, "one reconstruction term only"
        "perceptual": {"FID": 38.76, "IS": 49.78},
        "mse+perceptual": {"FID": 38.63, "IS": 48.14},
        "prior": {"FID": 14.17, "IS": 88.78},
        SUBJECT: {"FID": 7.65, "IS": 116.70},
    },
}
TITLES = {**SCORE_TITLES, "overall": "GenEval"}
# our scores beside the paper's: class accuracy, like GenEval, asks whether an image shows what was wanted
SCORES_OF = {"noise": ("overall", "accuracy", "fid"), "regularizer": ("fid",), "reward": ("fid", "is_mean")}


@dataclass(frozen=True)
class Claim:
    """A conclusion of the paper: one row is better than another."""

    text: str
    better: str
    worse: str


CLAIMS: dict[str, list[Claim]] = {
    "noise": [
        *(
            Claim(f"noise helps: ξ = {ratio} is better than 0", ratio, "0.0")
            for ratio in ("0.25", "0.5", "0.75", "0.95")
        ),
        *(Claim(f"ξ = 0.5 is the best: better than {ratio}", "0.5", ratio) for ratio in ("0.25", "0.75", "0.95")),
    ],
    "regularizer": [
        *(
            Claim(f"β = 0.1 is the best for {kind.upper()}: better than {weight}", f"{kind}-0.1", f"{kind}-{weight}")
            for kind in ("ce", "kl")
            for weight in ("0.01", "1.0")
        ),
        *(Claim(f"at β = {w}, CE is better than KL", f"ce-{w}", f"kl-{w}") for w in ("0.01", "0.1", "1.0")),
        *(
            Claim(f"{kind.upper()} with too small a β, 0.01, is worse than no alignment", BASE, f"{kind}-0.01")
            for kind in ("ce", "kl")
        ),
        *(
            Claim(f"{kind.upper()} with β = 0.1 is better than no alignment", f"{kind}-0.1", BASE)
            for kind in ("ce", "kl")
        ),
    ],
    "reward": [
        *(
            Claim(f"reward without prior ({parts}) is worse than no alignment", BASE, parts)
            for parts in ("mse", "perceptual", "mse+perceptual")
        ),
        Claim("the prior alone is better than no alignment", "prior", BASE),
        Claim("the whole objective is better than no alignment", SUBJECT, BASE),
        Claim("the whole objective is better than the prior alone", SUBJECT, "prior"),
        Claim("the whole objective is better than the reward alone", SUBJECT, "mse+perceptual"),
    ],
}
HOLDS, REVERSED, UNDECIDED = "holds", "reversed", "not to be told from seed noise"


def summarize(sets: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard error and 95 % t interval over seeds of every score; one row per row of the table and extractor.

    `sets` has one row per cell and extractor: table, row, seed, extractor, and the scores.
    """
    rows: list[dict[str, Any]] = []
    for (extractor, name), group in sets.groupby(["extractor", "row"], sort=False):
        row: dict[str, Any] = {"row": name, "extractor": extractor, "seeds": len(group)}
        for score in TITLES:
            if score in group and group[score].notna().all():
                values = group[score].to_numpy()
                row[score], row[f"{score}_se"] = mean_and_standard_error(values)
                about = paired_difference(values, np.zeros_like(values))
                row[f"{score}_low"], row[f"{score}_high"] = about.low, about.high
        rows.append(row)
    return pd.DataFrame(rows)


def judge(sets: pd.DataFrame, table: str) -> pd.DataFrame:
    """Every claim of the paper about a table, as far as its rows were run, under each extractor and score.

    A claim holds where the 95 % interval of the difference, paired over seeds (which alignment and sampling follow), lies
    on its side of 0, and is reversed where it lies on the other. `adjusted_p` is Holm's over the claims of one score.
    """
    rows: list[dict[str, Any]] = []
    for extractor, part in sets.groupby("extractor", sort=False):
        groups = {name: group.sort_values("seed") for name, group in part.groupby("row")}
        for score in SCORES_OF[table]:
            if score not in part or part[score].isna().any():
                continue
            found = []
            for claim in CLAIMS[table]:
                if claim.better not in groups or claim.worse not in groups:
                    continue
                better, worse = groups[claim.better], groups[claim.worse]
                assert list(better["seed"]) == list(worse["seed"])
                a, b = better[score].to_numpy(), worse[score].to_numpy()
                found.append(
                    {**vars(claim), "better_mean": a.mean(), "worse_mean": b.mean(), **vars(paired_difference(a, b))}
                )
            adjusted = holm([row["p_value"] for row in found])
            for row, p in zip(found, adjusted, strict=True):
                verdict = verdict_of(row["low"], row["high"], score in LOWER_IS_BETTER)
                rows.append({"extractor": extractor, "score": score, **row, "adjusted_p": p, "verdict": verdict})
    return pd.DataFrame(rows)


def verdict_of(low: float, high: float, lower_is_better: bool) -> str:
    """Of the interval of a difference, the supposedly better minus the worse; NaN, that of a single seed, decides nothing."""
    if lower_is_better:
        low, high = -high, -low
    return HOLDS if low > 0 else REVERSED if high < 0 else UNDECIDED
