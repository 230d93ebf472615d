"""The page of a table, made from numbers alone: it says what was measured, either way."""

from typing import Any

import numpy as np
import pandas as pd

from pipelines.reporting.conclusions import conclusions
from pipelines.reporting.evidence import GENEVAL, Evidence
from pipelines.reporting.markdown import counted, item, markdown_table, prose
from pipelines.reporting.replication import replication_sections
from pipelines.reporting.rule import RULE, guided, own_rule
from pipelines.reporting.settings import cost_table, settings_table
from pipelines.reporting.statistics import BETTER, NO_DIFFERENCE, NOT_TESTED, WORSE
from pipelines.reporting.tables import Picture, Table
from pipelines.variants.protocol import warning
from pipelines.variants.score_files import SCORE_TITLES
from vapi_core.scoring.geneval.comparison import OVERALL

PICTURE_TITLES: dict[Picture, str] = {
    "samples": "Samples of the same streams",
    "reconstructions": "Held-out images and their reconstructions",
    "curves": "Curves of every alignment",
    "precision-recall": "Precision against recall",
    "axis": "The paper's numbers and ours",
    "densities": "Densities of embeddings",
}
PICTURE_NOTES: dict[Picture, str] = {
    "axis": "Bars of error are 95 % intervals over seeds. Dashed: the base.",
    "curves": "A line for each seed.",
    "precision-recall": (
        "A dot is a set of images. What only sharpens moves along the line of the base's temperatures. "
        "What improves comes to lie above it. Dotted: the first seed on its way, after so many steps."
    ),
    "densities": "Points are outputs of the tokenizer's encoder, which scores nothing; one set of each row.",
}
IN_ORDER = (  # of the rule, what a reader of an ordered table asks next
    "In the order a claim that is reversed is a difference too, so the tests go on. "
    "A difference of the main question is detectable among its claim's extractors alone.",
)
VERDICTS = (BETTER, WORSE, NO_DIFFERENCE, NOT_TESTED)
OF_A_CLAIM = {BETTER: "holds", WORSE: "reversed"}  # what a verdict means for a claim of the paper
VERBS = {  # what one comparison does, what several do
    BETTER: ("is better", "are better"),
    WORSE: ("is worse", "are worse"),
    NO_DIFFERENCE: ("finds no difference", "find no difference"),
    NOT_TESTED: ("is not tested", "are not tested"),
}
VERBS_OF_CLAIMS = VERBS | {BETTER: ("holds", "hold"), WORSE: ("is reversed", "are reversed")}


def page(evidence: Evidence, facts: dict[str, Any], plan: str = "") -> str:
    """The page as Markdown. `facts` are those of the protocol of scoring, `plan` is what to say of the plan."""
    table, params = evidence.table, evidence.params
    sections = [
        f"# {table.title}, profile `{params.profile}`",
        prose(warning(params, facts)),
        prose(plan),
        prose(*setup(evidence)),
        "## Findings",
        *findings(evidence),
        *conclusions(evidence),
        *replication_sections(evidence),
        *(picture(table, name) for name in table.pictures),
        "## Scores",
        prose(*caption(evidence)),
        *(score_section(evidence, str(extractor), part) for extractor, part in groups(evidence.summary)),
        *task_sections(evidence),
        *comparison_sections(evidence),
        "## Settings",
        settings_table(evidence),
        "## What it cost",
        cost_table(evidence.stages),
        prose(
            f"All numbers: `reports/tables/{table.name}`. Scores of every set: `reports/scores`. "
            f"How each number came to be: `dvc.lock`. `dvc repro {target(table)}` writes this page."
        ),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def target(table: Table) -> str:
    """What `dvc repro` calls a table."""
    return table.name if table.name == "report" else f"table@{table.name}"


def groups(summary: pd.DataFrame) -> Any:
    return summary.groupby("extractor", sort=False)


def picture(table: Table, name: Picture) -> str:
    path = "figures/reconstructions.png" if name == "reconstructions" else f"figures/{table.name}/{name}.png"
    title = "Scores over the axis" if name == "axis" and table.paper is None else PICTURE_TITLES[name]
    image = f"![{title}]({path})"
    return f"{image}\n\n{prose(PICTURE_NOTES[name])}" if name in PICTURE_NOTES else image


def setup(evidence: Evidence) -> list[str]:
    """What was run, in a few sentences; the settings stand further below."""
    params, seeds = evidence.params, evidence.params.align.seeds
    return [
        "Every alignment starts from the same base, and with a seed sees the same images in the same order.",
        f"{counted(len(seeds), 'seed')}: {', '.join(map(str, seeds))}.",
        counts_of_images(evidence.summary, params.sample.count if params.task == "t2i" else None),
        "An image has the same random stream in all rows of a seed.",
    ]


def counts_of_images(summary: pd.DataFrame, each: int | None) -> str:
    """Whether all sets have equally many images: without that no FID can be compared."""
    counts = sorted(set(summary["samples"].dropna().astype(int))) if "samples" in summary else []
    of_prompts = "" if each is None else f", {each} of each prompt"
    if len(counts) == 1:
        return f"All sets have {counts[0]:,} images{of_prompts}."
    told = " or ".join(f"{count:,}" for count in counts)
    return f"Sets have unequal numbers of images, {told}, so their FID cannot be compared." if counts else ""


def findings(evidence: Evidence) -> list[str]:
    """What the tests say: claim by claim of the scores that the table is about, of all others in numbers."""
    table, comparisons = evidence.table, evidence.comparisons
    parts = [blindness(evidence)]
    if evidence.params.score.extractors and not set(evidence.sets["extractor"]) - set(evidence.blind):
        return [*parts, "So nothing is left to compare by."]
    if comparisons.empty:
        return [*parts, "No claim of this table has both of its rows here."]
    if comparisons["pairs"].max() == 1:
        text = (
            "There is one seed, so nothing can be tested: a difference in the tables below may be chance. "
            f"The differences stand in `reports/tables/{table.name}/comparisons.csv`."
        )
        return [*parts, prose(text)]
    main = comparisons["guidance_scale"] == evidence.guidance
    told = main & comparisons["score"].isin(table.scores)
    for score in table.scores:
        part = comparisons[told & (comparisons["score"] == score)]
        if not part.empty:
            parts += claims_about(evidence, score, part)
    others = comparisons[~told]
    return [*parts, "**Other scores**", count_table(others)] if len(others) else parts


def blindness(evidence: Evidence) -> str:
    lines = [
        f"`{name}` is not asked. Under it images that were only encoded and decoded have FID {floor:.4g}, "
        f"the base's samples {base:.4g}: it sees the tokenizer, not the generator."
        for name, (floor, base) in evidence.blind.items()
    ]
    return "\n\n".join(prose(line) for line in lines)


def claims_about(evidence: Evidence, score: str, part: pd.DataFrame) -> list[str]:
    """A score's claims at the main guidance: counted in words, then one by one."""
    table, extractors = evidence.table, list(part["extractor"].unique())
    is_main = table.ordered and score == table.scores[0]
    title = SCORE_TITLES[score][0].upper() + SCORE_TITLES[score][1:]
    under = f", under {extractors[0]}" if len(extractors) == 1 and extractors != [GENEVAL] else ""
    words = [f"**{title} {guided(evidence.guidance)}{under}**{', the main question' if is_main else ''}."]
    for extractor in extractors:
        by = f"Under {extractor}: " if len(extractors) > 1 else ""
        words.append(by + summed_up(table, part.loc[part["extractor"] == extractor, "verdict"]))
    if is_main and (part["verdict"] == NOT_TESTED).any():
        words.append("The claims stand in the order of their tests, which stop at the first without a difference.")
    rows = [
        [
            row["text"],
            row["extractor"] if len(extractors) > 1 else "",
            verdict_text(table, row["verdict"]),
            f"{row['better_mean']:.4g} against {row['worse_mean']:.4g}",
            difference(row),
            number(row["adjusted_p"]),
            number(row["smallest"]),
        ]
        for _, row in part.iterrows()
    ]
    header = ["claim", "extractor", "verdict", "means", "difference [95 %]", "adjusted p", "detectable"]
    return [prose(*words), markdown_table(header, rows)]


def summed_up(table: Table, verdicts: pd.Series) -> str:
    """How many of a table's claims hold, in plain words."""
    counts, total = verdicts.value_counts().to_dict(), len(verdicts)
    verbs = VERBS if table.paper is None else VERBS_OF_CLAIMS
    parts = [f"{counts[verdict]} {verbs[verdict][counts[verdict] > 1]}" for verdict in VERDICTS if verdict in counts]
    if BETTER not in counts:
        parts.insert(0, f"none {verbs[BETTER][0]}")
    *most, last = parts
    told = f"{', '.join(most)} and {last}" if most else last
    return f"Of {counted(total, 'comparison' if table.paper is None else 'claim of the paper')} {told}."


def verdict_text(table: Table, verdict: str) -> str:
    return OF_A_CLAIM.get(verdict, verdict) if table.paper is not None else verdict


def count_table(comparisons: pd.DataFrame) -> str:
    """Of each score and guidance scale how many comparisons end how; each stands under Every comparison."""
    rows = []
    for (guidance, score), part in comparisons.groupby(["guidance_scale", "score"], sort=False):
        counts = part["verdict"].value_counts()
        rows.append([SCORE_TITLES[str(score)], f"{guidance:g}", *(counts.get(verdict, 0) for verdict in VERDICTS)])
    return markdown_table(["score", "guidance", *VERDICTS], rows)


def difference(row: pd.Series) -> str:
    if row["pairs"] == 1:
        return f"{row['mean']:+.3g}"
    return f"{row['mean']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]"


def caption(evidence: Evidence) -> list[str]:
    table, seeds = evidence.table, len(evidence.params.align.seeds)
    over = (
        "Values of one seed, so without intervals."
        if seeds == 1
        else (
            f"Means over {counted(seeds, 'seed')} with Student's 95 % interval. "
            "A seed changes alignment and sampling; of the base, sampling alone."
        )
    )
    lines = [
        over,
        f"Sets are compared with `{evidence.params.score.references[0]}`.",
        "FID falls with the number of images, so compare rows of one table only.",
    ]
    if table.paper:
        lines.append(f"The paper's numbers are {table.paper_setting}: compare shapes only.")
    return lines


def score_section(evidence: Evidence, extractor: str, part: pd.DataFrame) -> str:
    """All means under one extractor."""
    table, paper = evidence.table, evidence.table.paper or {}
    shown = {name: title for name, title in SCORE_TITLES.items() if name in part and part[name].notna().any()}
    published = list(dict.fromkeys(name for scores in paper.values() for name in scores))
    rows = []
    for _, row in part.sort_values("guidance_scale", kind="stable").iterrows():
        own = paper.get(row["row"], {}) if row["guidance_scale"] == 1.0 else {}
        rows.append(
            [table.label(row["row"]), f"{row['guidance_scale']:g}"]
            + [f"{own.get(name, '')}" for name in published]
            + [with_interval(row, name) for name in shown]
        )
    titles = [f"paper's {SCORE_TITLES[name]}" for name in published]
    notes = [f"### {extractor}", markdown_table(["row", "guidance", *titles, *shown.values()], rows)]
    return "\n\n".join(
        note for note in (*notes, prose(*matched(evidence, extractor), floor(evidence, extractor))) if note
    )


def matched(evidence: Evidence, extractor: str) -> list[str]:
    """Which of the base's temperatures comes nearest to each row."""
    matches = evidence.matches
    found = matches[matches["extractor"] == extractor] if len(matches) else matches
    if found.empty:
        return []
    told = "; ".join(
        f"{evidence.table.label(row['row'])} ({row['precision']:.3f}) T {row['temperature']} ({row['base_precision']:.3f})"
        for _, row in found.iterrows()
    )
    return [
        f"The base's temperatures that come nearest in precision: {told}.",
        "This describes these images. params.yaml named the compared temperatures before there were any.",
    ]


def floor(evidence: Evidence, extractor: str) -> str:
    """What the extractor says of images that no generator made, and how well it reads real ones."""
    fid = evidence.reconstructions.get(extractor)
    told = [] if fid is None else [f"Held-out images that the tokenizer only encodes and decodes have FID {fid:.4g}."]
    stage = evidence.stages.get(f"classifier@{extractor.removesuffix('-classifier')}", {})
    if (share := stage.get("held_out_accuracy")) is not None:
        told.append(f"It reads {share:.1%} of the held-out images right.")
    return " ".join(told)


def with_interval(row: pd.Series, name: str) -> str:
    """A mean with its interval, where there is more than one seed."""
    if pd.isna(row.get(name)):
        return ""
    if np.isnan(row[f"{name}_low"]):
        return f"{row[name]:.4g}"
    return f"{row[name]:.4g} [{row[f'{name}_low']:.4g}, {row[f'{name}_high']:.4g}]"


def comparison_sections(evidence: Evidence) -> list[str]:
    """The rule, and every comparison with all its numbers."""
    comparisons, table = evidence.comparisons, evidence.table
    if comparisons.empty or comparisons["pairs"].max() == 1:
        return []
    rows = [
        [
            SCORE_TITLES[row["score"]],
            f"{row['guidance_scale']:g}",
            row["extractor"],
            row["text"],
            difference(row),
            number(row["p_value"]),
            number(row["adjusted_p"]),
            number(row["smallest"]),
            verdict_text(table, row["verdict"]),
        ]
        for _, row in comparisons.iterrows()
    ]
    header = [
        "score",
        "guidance",
        "extractor",
        "claim",
        "difference [95 %]",
        "p",
        "adjusted p",
        "detectable",
        "verdict",
    ]
    rules = [*RULE, *own_rule(table, evidence.guidance), *(IN_ORDER if table.ordered else ())]
    text = "\n".join(item(line) for line in rules)
    return ["## Every comparison", text, markdown_table(header, rows)]


def number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.2g}"


def task_sections(evidence: Evidence) -> list[str]:
    """GenEval by task: what was asked, the detector's own accuracy, all scores."""
    tasks, params = evidence.tasks, evidence.params
    if tasks is None:
        return []
    assert params.score.geneval is not None
    names = list(dict.fromkeys(tasks["task"]))
    prompts = int(tasks.loc[tasks["task"] == OVERALL, "prompts"].iloc[0])
    intro = prose(
        f"{counted(prompts, 'prompt')}, {counted(params.sample.count, 'image')} each.",
        f"Means over {counted(len(params.align.seeds), 'seed')}, with the 95 % bootstrap interval over prompts.",
        "Overall is the mean of the tasks.",
        f"Detector: `{params.score.geneval.detector}`.",
        detector_sentence(evidence.stages.get("references", {})),
    )
    rows = [
        [
            evidence.table.label(str(row)),
            f"{guidance:g}",
            *(task_cell(part[part["task"] == name].iloc[0]) for name in names),
        ]
        for (row, guidance), part in tasks.groupby(["row", "guidance_scale"], sort=False)
    ]
    return ["## GenEval by task", intro, markdown_table(["row", "guidance", *names], rows)]


def detector_sentence(metrics: dict[str, float]) -> str:
    if "detector_accuracy" not in metrics:
        return "Published scores use another detector: docs/text-to-image.md."
    return (
        f"On reference scenes of held-out digits {metrics['detector_accuracy']:.1%} of its decisions are right: "
        f"{metrics['detector_accuracy_fulfilled']:.1%} over scenes judged by their own request, "
        f"{metrics['detector_accuracy_foreign']:.1%} over scenes judged by another's. Their reconstructions by the "
        f"tokenizer score {metrics['reconstruction_geneval']:.3f}, each by its scene's request: what tokens can hold."
    )


def task_cell(row: pd.Series) -> str:
    return f"{row['mean']:.3f} [{row['low']:.2f}, {row['high']:.2f}]"
