"""The rule of verdicts in words, for pages and for plans; `statistics` applies it."""

from pipelines.reporting.statistics import LEVEL
from pipelines.reporting.tables import Table
from pipelines.variants.score_files import SCORE_TITLES

RULE = (
    "A difference is the first row of a claim minus the second. Its interval is Student's at 95 %, not adjusted.",
    "The test is Student's paired t-test over seeds, two-sided.",
    "The claims about one score at one guidance scale are a family, under all extractors together. "
    f"Their p-values are adjusted by Holm. A difference counts where the adjusted p is below {LEVEL}.",
    "Detectable is the smallest difference that such a test finds with 80 % power, adjusted for all comparisons of its "
    "family. So no difference found is no evidence that there is none.",
)


def guided(guidance: float) -> str:
    return "without guidance" if guidance == 1.0 else f"guidance {guidance:g}"


def own_rule(table: Table, guidance: float) -> list[str]:
    """What holds for the verdicts of one table only."""
    lines = []
    if table.ordered:
        lines.append(
            f"The claims about {SCORE_TITLES[table.scores[0]]} {guided(guidance)} are the main question. "
            "They are tested in the order in which they stand. Those behind the first that finds no difference are "
            "not tested."
        )
    if table.paper is not None:
        lines.append("A claim of the paper holds where its first row is better, and is reversed where it is worse.")
    return lines
