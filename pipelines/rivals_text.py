"""The words and tables of reports/rivals.md, made from numbers alone: where VA-π wins, ties and loses."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.comparison import SCORE_TITLES, TEST
from pipelines.params import Params
from pipelines.paths import BASE
from pipelines.report_text import difference, markdown_table, same_precision, shown_scores, with_interval
from vapi_core.files import atomic_path


def write_rivals(
    path: Path,
    params: Params,
    summary: pd.DataFrame,
    matches: pd.DataFrame,
    comparisons: pd.DataFrame,
    stages: dict[str, dict[str, float]],
) -> None:
    """Writes the report. `stages` maps a stage's name to its metrics."""
    sections = [
        f"# VA-π and its rivals on profile `{params.profile}`",
        what_was_run(params),
        "## Where VA-π wins, ties and loses\n\n" + f"Test: {TEST}.\n\n" + "\n".join(findings(comparisons)),
        "## Scores\n\n" + caption(params, summary),
    ]
    for extractor, part in summary.groupby("extractor", sort=False):
        matched = matches[matches["extractor"] == extractor]
        table = score_table(part, matched, params.sample.temperature)
        sections.append(f"### {extractor}\n\n{table}\n\n{same_precision(matched)}")
    sections.append(
        "## Differences\n\nVA-π minus the other model, at the same temperature, guidance and sampling seeds (the base at "
        f"another temperature is the one whose precision comes nearest to VA-π's). {caption_of_pairs(comparisons)} "
        f"Test: {TEST}."
    )
    for extractor, part in comparisons.groupby("extractor", sort=False) if len(comparisons) else []:
        sections.append(f"### {extractor}\n\n" + comparison_table(part))
    sections += [
        "## Sharpening or improving?\n\nWhat only sharpens moves along the line of the base's temperatures; what improves "
        "comes to lie above it, with more precision at the same recall. What lies below it does less than a lower "
        "temperature would. Dotted: the first seed of each method after so many steps.\n\n"
        "![Precision against recall](rivals/figures/precision-recall.png)",
        embeddings(params),
        "## What it cost\n\n" + cost_table(params, stages),
        "All numbers: `reports/rivals/tables`; every set: `reports/rivals/scores/scores.csv` and "
        "`reports/scores/scores.csv`. This file is written by `dvc repro rivals`.",
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def what_was_run(params: Params) -> str:
    a, g = params.align, params.align.ar_grpo
    budget = f"{a.steps} steps" if a.budget == "steps" else f"{a.budget:g} seconds of training"
    rewards = " + ".join(f"{weight:g} {name}" for name, weight in g.rewards.model_dump().items() if weight)
    terms = " + ".join(f"{weight:g} {name}" for name, weight in a.reward.model_dump().items() if weight)
    methods = (*a.methods, *params.rivals.methods)
    rates = ", ".join(f"{m} {a.optimization(m).learning_rate:g}" for m in methods)
    return (
        f"Every method starts from the same base and has the same budget, {budget} of {a.batch_size} images, on the same "
        f"images in the same order; seeds {', '.join(map(str, a.seeds))}. Learning rates: {rates}. The reconstruction "
        f"that `va-pi` is rewarded for, and that `ste` and `tokenizer` descend, is {terms}; `ar-grpo` is rewarded with "
        f"{rewards}, its rollouts drawn with guidance {g.guidance_scale:g}. `cross-entropy` is the base trained further."
    )


def embeddings(params: Params) -> str:
    """The figure of densities, and which network its points come from."""
    rewarded = ", but it rewards here (`align.reward.embedding`)" if params.align.reward.embedding else " or rewards"
    return (
        "Embeddings are the outputs of the tokenizer's encoder, which is no network that scores"
        f"{rewarded}; one set of each model, against `{params.score.reference_splits[0]}`.\n\n"
        "![Densities of embeddings](rivals/figures/densities.png)"
    )


def findings(comparisons: pd.DataFrame) -> list[str]:
    """One line per extractor, guidance and score."""
    if comparisons.empty:
        return ["VA-π was not among the methods of this run."]
    lines = []
    for (extractor, guidance, score), part in comparisons.groupby(["extractor", "guidance_scale", "score"], sort=False):
        told = []
        for verdict, words in (("win", "wins against"), ("tie", "ties with"), ("loss", "loses to")):
            names = [setting(row) for _, row in part[part["verdict"] == verdict].iterrows()]
            if names:
                told.append(f"{words} {', '.join(names)}")
        lines.append(f"- {extractor}, guidance {guidance}, {SCORE_TITLES[str(score)]}: {'; '.join(told)}.")
    return lines


def setting(row: pd.Series) -> str:
    return f"{row['against']} at T {row['temperature']}" if row["against"] == BASE else str(row["against"])


def caption(params: Params, summary: pd.DataFrame) -> str:
    counts = sorted({int(n) for n in summary["samples"]})
    seeds = len(params.align.seeds)
    return (
        f"Mean ± standard error over {seeds} seeds (of alignment and sampling together; for the base, of sampling alone), "
        "and the 95 % percentile bootstrap interval over these seeds, which for so few is hardly more than their range. "
        f"Every set has {' or '.join(f'{n:,}' for n in counts)} images, against "
        f"`{params.score.references[0]}`. FID falls with the number of images: compare rows of one table only."
    )


def caption_of_pairs(comparisons: pd.DataFrame) -> str:
    pairs = sorted({int(n) for n in comparisons["pairs"]}) if len(comparisons) else []
    return f"Pairs of each: {', '.join(map(str, pairs))}."


def score_table(part: pd.DataFrame, matches: pd.DataFrame, temperature: float) -> str:
    """All models at the main temperature, and the base at the temperatures that have a method's precision."""
    shown = shown_scores(part)
    rows = []
    for _, row in part.sort_values("guidance_scale", kind="stable").iterrows():
        same = matches[matches["temperature"] == row["temperature"]]["model"]
        matched = row["model"] == BASE and row["guidance_scale"] == 1.0 and row["temperature"] != temperature
        if matched and same.empty:
            continue
        label = f"base, precision of {', '.join(same)}" if matched else row["model"]
        cells = [label, row["temperature"], row["guidance_scale"], f"{int(row['samples']):,}", int(row["seeds"])]
        rows.append([*cells, *(with_interval(row, name) for name in shown)])
    return markdown_table(["model", "temperature", "guidance", "images", "seeds", *shown.values()], rows)


def comparison_table(part: pd.DataFrame) -> str:
    rows = [
        [
            row["guidance_scale"],
            SCORE_TITLES[row["score"]],
            setting(row),
            difference(row),
            f"{row['p_value']:.2g}" if row["pairs"] > 1 else "",
            f"{row['adjusted_p']:.2g}" if row["pairs"] > 1 else "",
            row["verdict"],
        ]
        for _, row in part.iterrows()
    ]
    return markdown_table(["guidance", "score", "against", "difference", "p", "adjusted p", "VA-π"], rows)


def cost_table(params: Params, stages: dict[str, dict[str, float]]) -> str:
    rows = []
    for method in (*params.align.methods, *params.rivals.methods):
        runs = [stages[name] for seed in params.align.seeds if (name := f"align@{method}-{seed}") in stages]
        if not runs:
            continue

        def mean(name: str, runs: list[dict[str, float]] = runs) -> float:
            return float(np.mean([run.get(name, np.nan) for run in runs]))

        rows.append(
            [
                method,
                f"{mean('images_per_second'):.3g}",
                f"{mean('flops_per_image') / 1e9:.3g}",
                f"{mean('seconds'):.0f}",
                f"{mean('peak_memory_mb'):,.0f}",
            ]
        )
    header = ["method", "images/s", "GFLOPs an image", "seconds of its stage", "peak memory, MB"]
    return markdown_table(header, rows) + (
        "\n\nFLOPs: forward, rollouts, rewards and backward of one image, counted by `torch.utils.flop_counter`."
    )
