"""The page `replication`: whether the report's verdicts stand when the same seeds are trained with other rounding.

Another micro-batch, another number of threads or another machine rounds differently. After some steps one token of a
rollout differs, and then everything behind it: that is another random draw. A row NAME-again is the variant NAME so
drawn.
"""

import numpy as np
import pandas as pd

from pipelines.reporting.evidence import Evidence
from pipelines.reporting.markdown import markdown_table, prose
from pipelines.reporting.statistics import BETTER, NOT_TESTED, WORSE, compare
from pipelines.reporting.tables import AGAIN, REPLICATION, TABLES
from pipelines.variants.score_files import SCORE_TITLES, whole_alignments

SPREADS = ("fid", "accuracy", "precision", "recall")


def replication_sections(evidence: Evidence) -> list[str]:
    """Verdicts side by side, and how far equal seeds come apart; nothing for other tables."""
    if evidence.table.name != REPLICATION:
        return []
    return [*_verdicts(evidence), *_spread(evidence)]


def _verdicts(evidence: Evidence) -> list[str]:
    report = TABLES["report"]
    sets = whole_alignments(evidence.sets)
    seen = sets[~sets["extractor"].isin(evidence.blind)]
    first = seen[~seen["row"].str.endswith(AGAIN)]
    names = (*report.scores, *report.others)
    claims = report.claims(list(dict.fromkeys(first["row"])))
    there = compare(first, claims, names, (report.scores[0], evidence.guidance))
    here = evidence.comparisons.assign(**{side: evidence.comparisons[side].map(_first) for side in ("better", "worse")})
    keys = ["guidance_scale", "score", "extractor", "better", "worse"]
    both = there.merge(here, on=keys, suffixes=("", "_again")) if len(there) and len(here) else pd.DataFrame()
    if len(both):
        both = both[(both[["verdict", "verdict_again"]] != NOT_TESTED).any(axis=1)]
    if both.empty:  # of one seed nothing is tested
        return []
    agree = both["verdict"] == both["verdict_again"]
    main = both["score"].isin(report.scores)
    rows = [
        [SCORE_TITLES[row["score"]], row["extractor"], row["text"], row["verdict"], row["verdict_again"]]
        for _, row in both[main | ~agree].iterrows()
    ]
    turned = both[["verdict", "verdict_again"]].isin({BETTER, WORSE}).all(axis=1) & ~agree
    summary = prose(
        "Alignments whose name ends in -again are trained with other threads and another micro-batch.",
        "The base, its temperatures and what scores are the same in both.",
        f"Of {len(both)} comparisons, each tested in one at least, {int(agree.sum())} have the same verdict.",
        f"Of the {int(main.sum())} about the report's main scores {int((agree & main).sum())} have.",
        f"Better in one and worse in the other: {int(turned.sum()) or 'none'}.",
        "The table shows these, and all others that differ.",
    )
    table = markdown_table(["score", "extractor", "claim", "report", "again"], rows)
    return ["## The report's verdicts again", summary, table]


def _first(row: str) -> str:
    return row.removesuffix(AGAIN)


def _spread(evidence: Evidence) -> list[str]:
    sets = whole_alignments(evidence.sets)
    plain = sets[(sets["guidance_scale"] == evidence.guidance) & ~sets["extractor"].isin(evidence.blind)]
    rows = []
    for (extractor, name), again in plain[plain["row"].str.endswith(AGAIN)].groupby(["extractor", "row"], sort=False):
        first = plain[(plain["row"] == _first(str(name))) & (plain["extractor"] == extractor)]
        for score in SPREADS:
            pair = first.merge(again, on="seed", suffixes=("", "_again"))
            if score in plain and len(pair) > 1 and pair[score].notna().all():
                seeds, rounding = spreads(pair[score].to_numpy(), pair[f"{score}_again"].to_numpy())
                rows.append([_first(str(name)), extractor, SCORE_TITLES[score], f"{seeds:.3g}", f"{rounding:.3g}"])
    text = prose(
        "Standard deviations of a score: over seeds, and of one seed over rounding alone.",
        "The second is that of the difference of both draws, over the root of 2.",
    )
    header = ["row", "extractor", "score", "over seeds", "same seed, other rounding"]
    return ["## How far equal seeds come apart", text, markdown_table(header, rows)] if rows else []


def spreads(first: np.ndarray, again: np.ndarray) -> tuple[float, float]:
    """Standard deviation over seeds [N], and of one seed's two draws."""
    return float(first.std(ddof=1)), float(np.sqrt(np.mean(np.square(first - again)) / 2))
