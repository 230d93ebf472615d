"""The files of a variant's scores, and reading them."""

from pathlib import Path

import pandas as pd

from pipelines.config.paths import remedy
from vapi_core.errors import FileError

SCORES_TABLE, GENEVAL_TABLE = "scores.csv", "geneval.csv"  # in the directory of a variant's scores
SCORE_TITLES = {
    "fid": "FID",
    "is_mean": "IS",
    "kid_mean": "KID",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "overall": "GenEval",
}


def read_table(path: Path) -> pd.DataFrame:
    """One of the tables of a variant's scores. Raises FileError where it is missing or damaged."""
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise FileError(path, "the file is missing.", remedy(path.parent)) from None
    except ValueError as error:  # pandas' errors of parsing are
        raise FileError(path, f"the file is damaged ({error}).", remedy(path.parent)) from None


def whole_alignments(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores without those of alignments on their way."""
    return scores[scores["steps"].isna()]


def overall_scores(judged: pd.DataFrame) -> pd.DataFrame:
    """GenEval's overall score of every set, the mean of its tasks: one row per set, column `overall`.

    `judged` has one row per set and prompt: variant, temperature, guidance_scale, seed, task, correct, images.
    """
    keys = ["variant", "temperature", "guidance_scale", "seed"]
    by_task = judged.groupby([*keys, "task"])[["correct", "images"]].sum()
    return (
        (by_task["correct"] / by_task["images"]).groupby(keys).mean().rename("overall").reset_index().assign(steps=None)
    )
