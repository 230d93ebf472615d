"""The words and tables of reports/ablations/*.md, made from numbers alone."""

from pathlib import Path

import pandas as pd

from pipelines.ablations import HOLDS, PAPER, REVERSED, SCORES_OF, TITLES, UNDECIDED
from pipelines.cells import terms_of
from pipelines.comparison import SUBJECT
from pipelines.params import Params
from pipelines.paths import BASE
from pipelines.report_text import difference, markdown_table
from vapi_core.files import atomic_path

HEADINGS = {
    "noise": "Noise ratio ξ (paper, table 5)",
    "regularizer": "Regularizer and its weight β (paper, figure 4)",
    "reward": "Parts of the objective (paper, table 4)",
}
PAPER_SETTING = {
    "noise": "GenEval overall of LlamaGen-XL, text to image",
    "regularizer": "FID of LlamaGen-XXL without guidance, read off the figure to ±0.1",
    "reward": "FID and IS of LlamaGen-XXL without guidance; for one reconstruction term it has one row, shown at both terms",
}


def write_ablation(path: Path, table: str, params: Params, summary: pd.DataFrame, findings: pd.DataFrame) -> None:
    """Writes the report of one table from `summarize` and `judge`."""
    sections = [
        f"# {HEADINGS[table]} on profile `{params.profile}`",
        what_was_run(table, params),
        "## Which of the paper's findings hold at this scale\n\n"
        + "\n".join(verdicts(findings, len(params.align.seeds))),
        f"![Paper and ours]({table}.png)",
        "## Scores\n\n" + caption(table, params),
    ]
    for extractor, part in summary.groupby("extractor", sort=False):
        sections.append(f"### {extractor}\n\n" + score_table(table, part))
    if len(findings):
        sections.append("## Every comparison\n\n" + comparison_caption() + "\n\n" + comparison_table(findings))
    sections += [
        f"![The same sampling streams in every row]({table}-samples.png)",
        f"Numbers: `{table}.csv`; curves of every cell: `curves/`. This file is written by `dvc repro ablation-{table}`.",
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def what_was_run(table: str, params: Params) -> str:
    a = params.align
    budget = f"{a.steps} steps" if a.budget == "steps" else f"{a.budget:g} seconds"
    fixed = {
        "noise": f"regularizer {a.regularizer} with β = {a.regularizer_weight}, reward {terms_of(a.reward)}",
        "regularizer": f"ξ = {a.noise_ratio}, reward {terms_of(a.reward)}",
        "reward": f"ξ = {a.noise_ratio}, regularizer {a.regularizer} with β = {a.regularizer_weight} where there is one",
    }
    return (
        f"Each row but `{BASE}` is an alignment of the same base: {budget} of {a.batch_size} images, G = {a.group_size}, "
        f"learning rate {a.learning_rate:g} ({a.schedule}), {fixed[table]}; seeds {', '.join(map(str, a.seeds))}."
    )


def verdicts(findings: pd.DataFrame, seeds: int) -> list[str]:
    """A count, then one line per claim, under each extractor and score."""
    if findings.empty:
        return ["None of the rows that the paper compares was run."]
    lines = []
    for (extractor, score), part in findings.groupby(["extractor", "score"], sort=False):
        counts = part["verdict"].value_counts()
        told = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in (HOLDS, REVERSED, UNDECIDED))
        heading = f"**{extractor}, {TITLES[str(score)]}**: of {len(part)} findings over {seeds} seeds: {told}."
        lines += ["", heading, ""]
        for verdict in (HOLDS, REVERSED, UNDECIDED):
            texts = [sentence(row) for _, row in part[part["verdict"] == verdict].iterrows()]
            lines += [f"- {verdict}: {text}" for text in texts]
    return lines[1:]


def sentence(row: pd.Series) -> str:
    return f"{row['text']} ({row['better_mean']:.4g} against {row['worse_mean']:.4g})"


def caption(table: str, params: Params) -> str:
    return (
        f"Mean ± standard error over {len(params.align.seeds)} seeds (alignment and sampling together; for the base, of "
        "sampling alone) and Student's 95 % interval. Every set of every row has "
        f"{params.sample.count:,} images, drawn at temperature {params.sample.temperature} without guidance, against the "
        f"reference `{params.score.references[0]}`. The paper's numbers are {PAPER_SETTING[table]}: compare shapes only."
    )


def score_table(table: str, part: pd.DataFrame) -> str:
    paper = PAPER[table]
    names = list(dict.fromkeys(name for scores in paper.values() for name in scores))
    shown = [score for score in TITLES if score in part and part[score].notna().any()]
    rows = []
    for _, row in part.iterrows():
        published = [f"{paper.get(row['row'], {}).get(name, '')}" for name in names]
        rows.append([label(table, row["row"]), *published, *(with_interval(row, score) for score in shown)])
    return markdown_table(["row", *(f"paper's {name}" for name in names), *(TITLES[s] for s in shown)], rows)


def label(table: str, row: str) -> str:
    """What a row is called where people read it."""
    if row == BASE:
        return "base, no alignment"
    if table == "noise":
        return f"ξ = {row}"
    if table == "regularizer":
        kind, _, weight = row.partition("-")
        return f"{kind.upper()}, β = {weight}"
    return {SUBJECT: "all", "prior": "prior only"}.get(row, f"{row}, no prior")


def with_interval(row: pd.Series, score: str) -> str:
    if pd.isna(row[f"{score}_se"]):
        return f"{row[score]:.4g}"
    return f"{row[score]:.4g} ± {row[f'{score}_se']:.2g} [{row[f'{score}_low']:.4g}, {row[f'{score}_high']:.4g}]"


def comparison_caption() -> str:
    return (
        "Differences are paired over seeds; a finding holds, or is reversed, where their 95 % interval (Student's t, not "
        "adjusted) leaves 0 out. The last column is the p-value adjusted by Holm for all findings of one score: below 0.05 "
        "a verdict stands even though so many were asked for."
    )


def comparison_table(findings: pd.DataFrame) -> str:
    rows = [
        [
            row["extractor"],
            TITLES[row["score"]],
            row["text"],
            difference(row),
            row["verdict"],
            f"{row['adjusted_p']:.2g}" if row["pairs"] > 1 else "",
        ]
        for _, row in findings.iterrows()
    ]
    return markdown_table(["extractor", "score", "finding of the paper", "difference", "here", "adjusted p"], rows)


def scores_drawn(table: str, summary: pd.DataFrame) -> list[tuple[str, str]]:
    """(extractor, score) of every panel of the figure."""
    return [
        (str(extractor), score)
        for score in SCORES_OF[table]
        for extractor, part in summary.groupby("extractor", sort=False)
        if score in part and part[score].notna().all()
    ]
