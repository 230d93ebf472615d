"""The tables: their rows, the axis on which rows stand, the paper's numbers, and the claims that are tested.

A table is one record here and its variants in params.yaml. Its rows are the base and the subject, which every table
has, and all variants that name the table; a table of the paper says what the paper found, and the report says what is
found here. Only the shape is comparable: models, data and scores differ. Paper: arXiv 2512.19680; table 5 and figure 4
and table 4 are LlamaGen's, figure 4 digitised to ±0.1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.config.params import decimal
from pipelines.config.variant import BASE, CONTINUED, EXPERIMENT, RIVALS, SUBJECT, Alignment, Variant
from pipelines.reporting.statistics import Claim
from vapi_core.alignment.va_pi import VaPiConfig

Picture = Literal["samples", "reconstructions", "curves", "precision-recall", "axis", "densities"]
Point = tuple[str, float | str]  # the line that a row is a point of, and where it stands on the axis
MAIN, OTHERS = ("fid", "accuracy", "overall"), ("is_mean", "kid_mean", "precision", "recall")  # of a table of methods
REPLICATION, AGAIN = "replication", "-again"  # its rows are variants of the experiment, drawn once more
ALL, PRIOR = "all", "prior"  # rows of the table of rewards: the whole objective, and no reward at all


@dataclass(frozen=True)
class Axis:
    """What an ablation varies. Its rows are named by their settings, whichever variant has these."""

    title: str  # of the figure's x
    row: Callable[[Alignment], str]  # name of the row of these settings, which are VA-π's
    point: Callable[[str], Point]  # of a row
    label: Callable[[str], str]  # of a row, for people
    logarithmic: bool = False


@dataclass(frozen=True)
class Table:
    """One page of results."""

    name: str  # of its page, its stage and its folders; the experiment's is "report"
    title: str
    rows: tuple[str, ...]  # tables of params.yaml whose variants are its rows
    scores: tuple[str, ...]  # that the page tells claim by claim, the main one first
    claims: Callable[[Sequence[str]], list[Claim]]  # of its rows, in the order of their test
    pictures: tuple[Picture, ...]
    ordered: bool = False  # whether the claims about the main score without guidance are tested in their order
    axis: Axis | None = None
    others: tuple[str, ...] = ()  # scores that the claims are about too, of which the page tells numbers of verdicts
    paper: dict[str, dict[str, float]] | None = None  # row -> score, as far as the paper has it
    paper_setting: str = ""  # what the paper's numbers are of
    later: bool = False  # whether it was added when a profile's other results were known: it has a plan of its own

    def row(self, variant: Variant, temperature: float, main: float) -> str:
        """The row of a variant's sets at a temperature; `main` is the temperature of everything but controls."""
        if temperature != main:
            return f"{BASE} at T {decimal(temperature)}"
        if variant.alignment is None:
            return BASE
        is_on_axis = self.axis is not None and isinstance(variant.alignment.config, VaPiConfig)
        return self.axis.row(variant.alignment) if self.axis is not None and is_on_axis else variant.name

    def label(self, row: str) -> str:
        """What a row is called where people read it."""
        if row == BASE:
            return "base, no alignment"
        if row == SUBJECT:
            return "VA-π"
        is_name = self.axis is None or row == CONTINUED or row.startswith(f"{BASE} at T ")
        return row if is_name or self.axis is None else self.axis.label(row)


def subject_against_all(rows: Sequence[str]) -> list[Claim]:
    """VA-π against the base, the controls that are trained, and the base's lower temperatures from high to low."""
    others = [row for row in rows if row not in (SUBJECT, BASE)]
    cooled = sorted((row for row in others if row.startswith(f"{BASE} at T ")), key=_temperature, reverse=True)
    trained = [row for row in others if row not in cooled]
    return [Claim(f"VA-π is better than {row}", SUBJECT, row) for row in (BASE, *trained, *cooled)]


def subject_again(rows: Sequence[str]) -> list[Claim]:
    """The report's claims, each about the row that is drawn again, where there is one."""
    first = [row for row in rows if not row.endswith(AGAIN)]

    def again(row: str) -> str:
        return row + AGAIN if row + AGAIN in rows else row

    return [Claim(f"{c.text}, again", again(c.better), again(c.worse)) for c in subject_against_all(first)]


def _temperature(row: str) -> float:
    return float(row.rsplit(" ", 1)[1])


def noise_claims(rows: Sequence[str]) -> list[Claim]:
    """Paper: noise helps, and ξ = 0.5 is the best ratio."""
    ratios = ("0.25", "0.5", "0.75", "0.95")
    helps = [Claim(f"noise helps: ξ = {ratio} is better than 0", ratio, "0.0") for ratio in ratios]
    best = [Claim(f"ξ = 0.5 is the best: better than {ratio}", "0.5", ratio) for ratio in ratios if ratio != "0.5"]
    return helps + best


def regularizer_claims(rows: Sequence[str]) -> list[Claim]:
    """Paper: β = 0.1 is the best for both regularizers, cross-entropy beats KL, and too small a β harms."""
    kinds, weights = ("ce", "kl"), ("0.01", "0.1", "1.0")
    best = [
        Claim(f"β = 0.1 is the best for {kind.upper()}: better than {w}", f"{kind}-0.1", f"{kind}-{w}")
        for kind in kinds
        for w in ("0.01", "1.0")
    ]
    between = [Claim(f"at β = {w}, CE is better than KL", f"ce-{w}", f"kl-{w}") for w in weights]
    little = [
        Claim(f"{kind.upper()} with too small a β, 0.01, is worse than no alignment", BASE, f"{kind}-0.01")
        for kind in kinds
    ]
    enough = [Claim(f"{k.upper()} with β = 0.1 is better than no alignment", f"{k}-0.1", BASE) for k in kinds]
    return best + between + little + enough


def reward_claims(rows: Sequence[str]) -> list[Claim]:
    """Paper: reward without prior collapses, the prior alone gains little, and both together gain most."""
    parts = ("mse", "perceptual", "mse+perceptual")
    return [
        *(Claim(f"reward without prior ({part}) is worse than no alignment", BASE, part) for part in parts),
        Claim("the prior alone is better than no alignment", PRIOR, BASE),
        Claim("the whole objective is better than no alignment", ALL, BASE),
        Claim("the whole objective is better than the prior alone", ALL, PRIOR),
        Claim("the whole objective is better than the reward alone", ALL, "mse+perceptual"),
    ]


def regularizer_row(alignment: Alignment) -> str:
    config = alignment.config
    return f"{config.regularizer}-{decimal(config.regularizer_weight)}"


def regularizer_point(row: str) -> Point:
    kind, _, weight = row.partition("-")
    return kind.upper(), float(weight)


def regularizer_label(row: str) -> str:
    kind, weight = regularizer_point(row)
    return f"{kind}, β = {weight}"


def reward_row(alignment: Alignment) -> str:
    config = alignment.config
    terms = "+".join(config.reward.terms)
    if not terms:
        return PRIOR
    return terms if config.regularizer == "none" or config.regularizer_weight == 0 else ALL


def reward_label(row: str) -> str:
    return {ALL: ALL, PRIOR: "prior only"}.get(row, f"{row}, no prior")


def credit_row(alignment: Alignment) -> str:
    return f"{alignment.config.credit}-{alignment.optimization.steps}"


def credit_point(row: str) -> Point:
    credit, _, steps = row.rpartition("-")
    return credit, float(steps)


def credit_label(row: str) -> str:
    credit, _, steps = row.rpartition("-")
    return f"{credit}, {steps} steps"


def credit_claims(rows: Sequence[str]) -> list[Claim]:
    """Ours: after equally many steps, credit per token is better than credit per image."""
    places = [row.rpartition("-") for row in rows]
    ends = sorted({int(steps) for credit, _, steps in places if credit == "image"})
    return [
        Claim(f"after {steps} steps {credit} is better than image", f"{credit}-{steps}", f"image-{steps}")
        for steps in ends
        for credit in ("token", "token-3x3")
        if f"{credit}-{steps}" in rows
    ]


TABLES = {
    table.name: table
    for table in (
        Table(
            name="report",
            title="VA-π",
            rows=(EXPERIMENT,),
            scores=MAIN,
            others=OTHERS,
            claims=subject_against_all,
            ordered=True,
            pictures=("samples", "precision-recall", "curves", "reconstructions"),
        ),
        Table(
            name=RIVALS,
            title="VA-π and its rivals (paper, table 2)",
            rows=(EXPERIMENT, RIVALS),
            scores=MAIN,
            others=OTHERS,
            claims=subject_against_all,
            pictures=("precision-recall", "densities"),
        ),
        Table(
            name=REPLICATION,
            title="The report's alignments again, with other rounding",
            rows=(EXPERIMENT, REPLICATION),
            scores=MAIN,
            others=OTHERS,
            claims=subject_again,
            ordered=True,
            pictures=("precision-recall",),
        ),
        Table(
            name="noise",
            title="Noise ratio ξ (paper, table 5)",
            rows=(EXPERIMENT, "noise"),
            scores=("overall", "accuracy", "fid"),
            claims=noise_claims,
            pictures=("axis", "samples"),
            paper={
                BASE: {"overall": 0.306},
                "0.0": {"overall": 0.302},
                "0.25": {"overall": 0.315},
                "0.5": {"overall": 0.339},
                "0.75": {"overall": 0.332},
                "0.95": {"overall": 0.329},
            },
            paper_setting="GenEval overall of LlamaGen-XL, text to image",
            axis=Axis(
                "noise ratio ξ",
                row=lambda alignment: decimal(alignment.config.noise_ratio),
                point=lambda row: ("ξ", float(row)),
                label=lambda row: f"ξ = {row}",
            ),
        ),
        Table(
            name="regularizer",
            title="Regularizer and its weight β (paper, figure 4)",
            rows=(EXPERIMENT, "regularizer"),
            scores=("fid",),
            claims=regularizer_claims,
            pictures=("axis", "samples"),
            paper={
                BASE: {"fid": 14.36},
                "ce-0.01": {"fid": 22.2},
                "ce-0.1": {"fid": 7.65},
                "ce-1.0": {"fid": 10.9},
                "kl-0.01": {"fid": 22.5},
                "kl-0.1": {"fid": 8.6},
                "kl-1.0": {"fid": 12.8},
            },
            paper_setting="FID of LlamaGen-XXL without guidance, read off the figure to ±0.1",
            axis=Axis("weight β", regularizer_row, regularizer_point, regularizer_label, logarithmic=True),
        ),
        Table(
            name="reward",
            title="Parts of the objective (paper, table 4)",
            rows=(EXPERIMENT, "reward"),
            scores=("fid", "is_mean"),
            claims=reward_claims,
            pictures=("axis", "samples"),
            paper={
                BASE: {"fid": 14.36, "is_mean": 86.55},
                "mse": {"fid": 38.76, "is_mean": 49.78},  # one row of the paper, "one reconstruction term only"
                "perceptual": {"fid": 38.76, "is_mean": 49.78},
                "mse+perceptual": {"fid": 38.63, "is_mean": 48.14},
                PRIOR: {"fid": 14.17, "is_mean": 88.78},
                ALL: {"fid": 7.65, "is_mean": 116.70},
            },
            paper_setting=(
                "FID and IS of LlamaGen-XXL without guidance; for one reconstruction term it has one row, shown at both"
            ),
            axis=Axis("parts of the objective", reward_row, lambda row: ("parts", row), reward_label),
        ),
        Table(
            name="credit",
            title="Credit per token, over steps",
            rows=(EXPERIMENT, "credit"),
            scores=("fid", "accuracy", "recall"),
            others=("precision",),
            claims=credit_claims,
            pictures=("axis", "samples"),
            axis=Axis("steps", credit_row, credit_point, credit_label),
            later=True,
        ),
    )
}
