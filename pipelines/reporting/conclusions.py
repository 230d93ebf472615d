"""What the tests of a table come to, in words: what the subject gains over each row, at what price, how surely."""

import pandas as pd

from pipelines.reporting.evidence import Evidence
from pipelines.reporting.markdown import item, prose
from pipelines.reporting.statistics import NO_DIFFERENCE
from pipelines.variants.score_files import SCORE_TITLES

TOLD = ("fid", "overall", "accuracy", "precision", "recall")


def conclusions(evidence: Evidence) -> list[str]:
    """One entry for each row that the subject is compared with, without guidance: every score under every extractor."""
    comparisons = evidence.comparisons
    if evidence.table.paper is not None or comparisons.empty or comparisons["pairs"].max() == 1:
        return []
    plain = comparisons[comparisons["guidance_scale"] == evidence.guidance]
    entries = [item(_entry(evidence, str(text), part)) for text, part in plain.groupby("text", sort=False)]
    intro = prose(
        "What changes when images of the first row stand in place of the second's, each score with its verdict.",
        "FID falls where images come closer to the held-out ones. Precision and accuracy say how good they are, recall",
        "how much of the data they cover. Detectable: what such a test finds in four of five cases.",
    )
    return ["## In words", intro, "\n".join(entries)] if entries else []


def _entry(evidence: Evidence, text: str, part: pd.DataFrame) -> str:
    extractors = [name for name in evidence.params.score.extractors[::-1] if name in set(part["extractor"])]
    extractors += sorted(set(part["extractor"]) - set(extractors))
    told = [
        f"{name}: {', '.join(_score(row) for row in _rows(part[part['extractor'] == name]))}" for name in extractors
    ]
    worse = evidence.table.label(str(part["worse"].iloc[0]))
    better = evidence.table.label(str(part["better"].iloc[0]))
    return f"**{better} instead of {worse}.** {'. '.join(told)}."


def _rows(part: pd.DataFrame) -> list[pd.Series]:
    rows = {row["score"]: row for _, row in part.iterrows()}
    return [rows[score] for score in TOLD if score in rows]


def _score(row: pd.Series) -> str:
    """A score's change and the verdict on it; where no difference is found, with what would have been."""
    change = f"{SCORE_TITLES[row['score']]} {row['worse_mean']:.3g} to {row['better_mean']:.3g}"
    if row["verdict"] == NO_DIFFERENCE:
        return f"{change} ({NO_DIFFERENCE}; detectable {row['smallest']:.2g})"
    return f"{change} ({row['verdict']})"
