"""The files of a variant's scores, and reading them."""

from pathlib import Path

import pandas as pd

from pipelines.config.paths import remedy
from vapi_core.errors import FileError

SCORES_TABLE, GENEVAL_TABLE = "scores.csv", "geneval.csv"  # in the directory of a variant's scores


def short_name(extractor: str) -> str:
    """What a metric's name calls an extractor: `scorer` of scorer-classifier."""
    return extractor.removesuffix("-classifier")


def read_table(path: Path) -> pd.DataFrame:
    """One of the tables of a variant's scores. Raises FileError where it is missing or damaged."""
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise FileError(path, "the file is missing.", remedy(path.parent)) from None
    except ValueError as error:  # pandas' errors of parsing are
        raise FileError(path, f"the file is damaged ({error}).", remedy(path.parent)) from None
