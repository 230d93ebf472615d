"""The page of a table, made from numbers alone: it says what was measured, either way."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipelines.reporting.evidence import GENEVAL, Evidence
from pipelines.reporting.protocol import warning
from pipelines.reporting.statistics import (
    BETTER,
    LEVEL,
    NO_DIFFERENCE,
    NOT_TESTED,
    SCORE_TITLES,
    WORSE,
)
from pipelines.reporting.tables import Picture, Table
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
    "precision-recall": (
        "What only sharpens moves along the line of the base's temperatures. What improves comes to lie above it. "
        "Dotted: the first seed on its way, after so many steps."
    ),
    "densities": "Points are outputs of the tokenizer's encoder, which scores nothing; one set of each row.",
}
VERDICTS = (BETTER, WORSE, NO_DIFFERENCE, NOT_TESTED)


def page(evidence: Evidence, facts: dict[str, Any]) -> str:
    """The page as Markdown. `facts` are those of the protocol of scoring."""
    table, params = evidence.table, evidence.params
    sections = [
        f"# {table.title}, profile `{params.profile}`",
        warning(params, facts),
        what_was_run(evidence),
        "## Findings\n\n" + "\n".join(findings(evidence)),
        *(picture(table, name) for name in table.pictures),
        "## Scores\n\n" + caption(evidence),
        *(score_section(evidence, str(extractor), part) for extractor, part in groups(evidence.summary)),
        *task_sections(evidence),
        *comparison_sections(evidence),
        "## What it cost\n\n" + cost_table(evidence.stages),
        f"All numbers: `reports/tables/{table.name}`. Scores of every set: `reports/scores`. How each number came to be: "
        f"`dvc.lock`. `dvc repro {target(table)}` writes this page.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def target(table: Table) -> str:
    """What `dvc repro` calls a table."""
    return table.name if table.name == "report" else f"table@{table.name}"


def groups(summary: pd.DataFrame) -> Any:
    return summary.groupby("extractor", sort=False)


def picture(table: Table, name: Picture) -> str:
    path = "figures/reconstructions.png" if name == "reconstructions" else f"figures/{table.name}/{name}.png"
    image = f"![{PICTURE_TITLES[name]}]({path})"
    return f"{image}\n\n{PICTURE_NOTES[name]}" if name in PICTURE_NOTES else image


def what_was_run(evidence: Evidence) -> str:
    params, stages = evidence.params, evidence.stages
    s, tokenizer, generator = params.subset, stages.get("tokenizer", {}), stages.get("generator", {})
    splits = ", ".join(f"{count:,} {name}" for name, count in s.splits.items())
    held_out = params.score.reference_splits[0]
    lines = [
        f"Images: {splits}, from the source `{s.source}` at {s.image_size} pixels. "
        f"Tokenizer: codebook {params.tokenizer.codebook_size} x {params.tokenizer.codebook_dim}, "
        f"{tokenizer.get('codebook_usage', float('nan')):.0%} of it used, "
        f"reconstruction MSE {tokenizer.get('reconstruction_mse', float('nan')):.4f} on held-out images. "
        f"Generator: {generator.get('parameters', float('nan')) / 1e6:.2f} M parameters, "
        f"{generator.get('cross_entropy_' + held_out, float('nan')):.3f} nats a token on held-out images.",
    ]
    aligned = [variant for variant in evidence.variants if variant.alignment is not None]
    shared, own = common_settings([v.alignment.settings for v in aligned if v.alignment is not None])
    seeds = ", ".join(map(str, params.align.seeds))
    lines.append(
        f"Every alignment starts from the same base and sees the same images in the same order; seeds {seeds}. "
        "Every set is drawn with one random stream per image, the same for all rows of a seed."
    )
    if shared:
        lines.append("Settings of all alignments: " + ", ".join(f"{k} {v}" for k, v in shared.items()) + ".")
    if any(own):
        rows = [[v.name, ", ".join(f"{k} {x}" for k, x in o.items())] for v, o in zip(aligned, own, strict=True)]
        lines.append(markdown_table(["alignment", "settings of its own"], rows))
    return "\n\n".join(lines)


def common_settings(settings: Sequence[dict[str, Any]]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What all settings have in common, and what each has beside that; nested ones by dotted names."""
    flat = [dict(flattened(s)) for s in settings]
    if not flat:
        return {}, []
    shared = {k: v for k, v in flat[0].items() if all(f.get(k) == v for f in flat)}
    return shared, [{k: v for k, v in f.items() if k not in shared} for f in flat]


def flattened(settings: dict[str, Any], prefix: str = "") -> Any:
    """Dotted name and text of every setting that says something; what is off or left to others is left out."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", f"{value:g}" if isinstance(value, float) else str(value)


def findings(evidence: Evidence) -> list[str]:
    """What the test says, score by score; favourable or not."""
    comparisons = evidence.comparisons
    lines = [
        f"- `{name}` is not asked: under it images that were only encoded and decoded have FID {floor:.4g}, the base's "
        f"samples {base:.4g}. It sees the tokenizer, not the generator."
        for name, (floor, base) in evidence.blind.items()
    ]
    if comparisons.empty:
        return [*lines, "- None of the claims has both of its rows here."]
    for (guidance, score), part in comparisons.groupby(["guidance_scale", "score"], sort=False):
        counts = part["verdict"].value_counts()
        told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)
        setting = "without guidance" if guidance == 1.0 else f"guidance {guidance}"
        lines += ["", f"**{SCORE_TITLES[str(score)]}, {setting}**: {told}.", ""]
        lines += [f"- {sentence(row)}" for _, row in part.iterrows()]
    return lines


def sentence(row: pd.Series) -> str:
    under = "" if row["extractor"] == GENEVAL else f" under {row['extractor']}"
    means = f"{row['better_mean']:.4g} against {row['worse_mean']:.4g}"
    if row["verdict"] == NOT_TESTED:
        return f"{row['text']}{under}: {NOT_TESTED} ({means})."
    told = {BETTER: "yes", WORSE: "the reverse"}.get(row["verdict"], row["verdict"])
    return f"{row['text']}{under}: {told} ({means}; {interval(row)})."


def interval(row: pd.Series) -> str:
    if row["pairs"] == 1:
        return f"difference {row['mean']:+.3g}, one seed and so no interval"
    return f"difference {row['mean']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]"


def caption(evidence: Evidence) -> str:
    params, table = evidence.params, evidence.table
    seeds = len(params.align.seeds)
    count = f"{params.sample.count:,} images" + (" of each prompt" if params.task == "t2i" else "")
    lines = [
        f"Mean ± standard error over {seeds} seeds, of alignment and sampling together; for the base, of sampling alone. "
        f"In brackets Student's 95 % interval. Every set has {count}, against `{params.score.references[0]}`. "
        "FID falls with the number of images: compare rows of one table only."
    ]
    if table.paper:
        lines.append(f"The paper's numbers are {table.paper_setting}: compare shapes only.")
    return " ".join(lines)


def score_section(evidence: Evidence, extractor: str, part: pd.DataFrame) -> str:
    table, paper = evidence.table, evidence.table.paper or {}
    shown = {name: title for name, title in SCORE_TITLES.items() if name in part and part[name].notna().any()}
    published = list(dict.fromkeys(name for scores in paper.values() for name in scores))
    rows = []
    for _, row in part.sort_values("guidance_scale", kind="stable").iterrows():
        own = paper.get(row["row"], {}) if row["guidance_scale"] == 1.0 else {}
        rows.append(
            [table.label(row["row"]), row["guidance_scale"]]
            + [f"{own.get(name, '')}" for name in published]
            + [with_interval(row, name) for name in shown]
        )
    titles = [f"paper's {SCORE_TITLES[name]}" for name in published]
    text = [f"### {extractor}", markdown_table(["row", "guidance", *titles, *shown.values()], rows)]
    matches = evidence.matches
    if len(matches) and len(matched := matches[matches["extractor"] == extractor]):
        told = [
            f"{row['row']} ({row['precision']:.3f}) T {row['temperature']} ({row['base_precision']:.3f})"
            for _, row in matched.iterrows()
        ]
        text.append(f"The base's temperature whose precision comes nearest, of those drawn: {'; '.join(told)}.")
    if (floor := evidence.reconstructions.get(extractor)) is not None:
        text.append(f"Held-out images that the tokenizer only encodes and decodes have FID {floor:.4g} to themselves.")
    return "\n\n".join(text)


def with_interval(row: pd.Series, name: str) -> str:
    """A mean with its standard error and interval, where there is more than one seed."""
    if pd.isna(row.get(name)):
        return ""
    if np.isnan(row[f"{name}_se"]):
        return f"{row[name]:.4g}"
    return f"{row[name]:.4g} ± {row[f'{name}_se']:.2g} [{row[f'{name}_low']:.4g}, {row[f'{name}_high']:.4g}]"


def comparison_sections(evidence: Evidence) -> list[str]:
    """The rule, and every comparison with all its numbers."""
    comparisons, table = evidence.comparisons, evidence.table
    if comparisons.empty:
        return []
    rows = [
        [
            SCORE_TITLES[row["score"]],
            row["guidance_scale"],
            row["extractor"],
            row["text"],
            f"{row['mean']:+.3g}" + ("" if row["pairs"] == 1 else f" [{row['low']:+.3g}, {row['high']:+.3g}]"),
            number(row["p_value"]),
            number(row["adjusted_p"]),
            number(row["smallest"]),
            row["verdict"],
        ]
        for _, row in comparisons.iterrows()
    ]
    header = ["score", "guidance", "extractor", "claim", "difference", "p", "adjusted p", "could be seen", "verdict"]
    return ["## Every comparison\n\n" + rule(table) + "\n\n" + markdown_table(header, rows)]


def rule(table: Table) -> str:
    order = (
        f" The claims about {SCORE_TITLES[table.scores[0]]} without guidance are the main question. They are tested in "
        "the order in which they stand, and those behind the first that finds no difference are not tested."
        if table.ordered
        else ""
    )
    return (
        "Student's paired t-test over seeds, two-sided. The claims about one score at one guidance scale are a family, "
        f"under all extractors together; p-values are adjusted by Holm, and a difference counts below {LEVEL}.{order} "
        "Intervals are not adjusted. The last number is the smallest difference that a single test would have found with "
        "80 % power: no difference found is no evidence that there is none."
    )


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
    intro = (
        f"{prompts} prompts, {params.sample.count} images each. Mean ± standard error over {len(params.align.seeds)} seeds "
        "[95 % bootstrap interval over prompts]; overall is the mean of the tasks. "
        f"Detector: `{params.score.geneval.detector}`. {detector_sentence(evidence.stages.get('references', {}))}"
    )
    rows = [
        [evidence.table.label(str(row)), guidance, *(task_cell(part[part["task"] == name].iloc[0]) for name in names)]
        for (row, guidance), part in tasks.groupby(["row", "guidance_scale"], sort=False)
    ]
    return ["## GenEval by task\n\n" + intro + "\n\n" + markdown_table(["row", "guidance", *names], rows)]


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
    error = "" if pd.isna(row["standard_error"]) else f" ± {row['standard_error']:.3f}"
    return f"{row['mean']:.3f}{error} [{row['low']:.2f}, {row['high']:.2f}]"


def cost_table(stages: dict[str, dict[str, float]]) -> str:
    rows = [
        [
            name,
            f"{m['seconds']:.0f}",
            f"{m['peak_memory_mb']:,.0f}",
            f"{m['images_per_second']:.4g}" if "images_per_second" in m else "",
            f"{m['flops_per_image'] / 1e9:.3g}" if "flops_per_image" in m else "",
        ]
        for name, m in stages.items()
    ]
    header = ["stage", "seconds", "peak memory, MB", "images/s", "GFLOPs an image"]
    return markdown_table(header, rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)
