"""The words and tables of reports/report.md, made from numbers alone: the report says what was measured, either way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.comparison import SCORE_TITLES, TEST, match_temperatures
from pipelines.params import Params
from pipelines.paths import BASE
from pipelines.protocol import warning
from vapi_core.files import atomic_path

TARGET = 0.25  # the share of the base's FID that VA-π should take away
WORDS = {"win": "is better", "tie": "cannot be told apart", "loss": "is worse"}


def write_report(
    path: Path,
    params: Params,
    summary: pd.DataFrame,
    comparisons: pd.DataFrame,
    stages: dict[str, dict[str, float]],
    facts: dict[str, Any],
    first_findings: Sequence[str] = (),
    first_sections: Sequence[str] = (),
) -> None:
    """Writes the report.

    Args:
        stages: a stage's name -> its metrics.
        facts: those of the protocol of scoring.
        first_findings: sentences that stand before those on FID.
        first_sections: sections that stand before the scores.
    """
    main = params.score.references[0]
    matches = match_temperatures(summary[summary["reference"] == main], params.sample.temperature)
    sections = [
        f"# VA-π on profile `{params.profile}`",
        *([text] if (text := warning(params, facts)) else []),
        what_was_run(params, stages),
        "## Findings\n\n" + "\n".join(f"- {line}" for line in [*first_findings, *findings(comparisons, params)]),
        *first_sections,
        f"## Scores against `{main}`\n\n" + caption(params, summary),
        *(
            "\n\n".join(
                [
                    f"### {extractor}",
                    score_table(part),
                    same_precision(matches[matches["extractor"] == extractor]),
                    *floor(str(extractor), stages),
                ]
            )
            for extractor, part in summary[summary["reference"] == main].groupby("extractor", sort=False)
        ),
        "## VA-π against everything else, without guidance\n\n"
        f"Difference of FID, VA-π at temperature {params.sample.temperature} minus the other, paired by seed: below 0 is "
        f"better; the interval is Student's t at 95 %. Test: {TEST}.\n\n"
        + (comparison_table(fid_without_guidance(comparisons, params)) if len(comparisons) else "No VA-π was run."),
        "![Samples of the same seeds side by side](figures/samples.png)",
        "![Precision against recall](figures/precision-recall.png)",
        "## The alignment\n\n![Curves of every alignment](figures/curves.png)",
        "## The tokenizer\n\n![Held-out images and their reconstructions](figures/reconstructions.png)",
        "## What it cost\n\n" + cost_table(stages),
        "All scores, one row per image set: `reports/scores/scores.csv`. How each number came to be: `dvc.lock`. "
        "This file is written by `dvc repro report`.",
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def what_was_run(params: Params, stages: dict[str, dict[str, float]]) -> str:
    a, s = params.align, params.subset
    splits = ", ".join(f"{count:,} {name}" for name, count in s.splits.items())
    tokenizer, generator = stages.get("tokenizer", {}), stages.get("generator", {})
    terms = " + ".join(f"{weight:g} {name}" for name, weight in a.reward.model_dump().items() if weight)
    return (
        f"Images: {splits} from the source `{s.source}` at {s.image_size} pixels. "
        f"Tokenizer: codebook {params.tokenizer.codebook_size} x {params.tokenizer.codebook_dim}, "
        f"{tokenizer.get('codebook_usage', float('nan')):.0%} of it used, "
        f"reconstruction MSE {tokenizer.get('reconstruction_mse', float('nan')):.4f} on held-out images. "
        f"Generator: {generator.get('parameters', float('nan')) / 1e6:.2f} M parameters, held-out cross-entropy "
        f"{generator.get('cross_entropy_' + params.score.reference_splits[0], float('nan')):.3f} nats a token.\n\n"
        f"VA-π: {a.steps} steps of {a.batch_size} images, G = {a.group_size}, ξ = {a.noise_ratio}, regularizer "
        f"{a.regularizer} with β = {a.regularizer_weight}, reward -({terms}) with `{a.reward_network}` as perceptual "
        f"network, learning rate {a.learning_rate:g} ({a.schedule}); seeds {', '.join(map(str, a.seeds))}. "
        "Every set is drawn with one random stream per image index, the same for all rows of a seed."
    )


def findings(comparisons: pd.DataFrame, params: Params) -> list[str]:
    """What the numbers say about the project's targets, as sentences; favourable or not."""
    if comparisons.empty:
        return ["VA-π was not among the methods of this run."]
    asked = fid_without_guidance(comparisons, params)
    if asked.empty:
        return ["Nothing was drawn without guidance, which is what the target is about."]
    lines = []
    for extractor, part in asked.groupby("extractor", sort=False):
        base = part[(part["against"] == BASE) & (part["temperature"] == params.sample.temperature)].iloc[0]
        change = base["mean"] / base["other"]
        clear = base["mean"] < -2 * base["standard_error"]
        verdict = "is met" if change <= -TARGET and clear else "is missed"
        if base["pairs"] == 1:
            verdict = "cannot be judged from one seed"
        lines.append(
            f"{extractor}: FID {base['other']:.4g} → {base['value']:.4g}, {change:+.0%} against the base at "
            f"temperature {base['temperature']} (difference {interval(base)}); the target, {-TARGET:.0%} and more than "
            f"twice the standard error, {verdict}."
        )
        controls = part[(part["against"] == BASE) & (part["temperature"] != params.sample.temperature)]
        if len(controls):
            best = controls.sort_values("other").iloc[0]
            lines.append(
                f"{extractor}: the base's best other temperature, {best['temperature']}, has FID {best['other']:.4g}; "
                f"VA-π {WORDS[best['verdict']]} (difference {interval(best)})."
            )
        for _, row in part[part["against"] != BASE].iterrows():
            lines.append(
                f"{extractor}: against {row['against']}, VA-π {WORDS[row['verdict']]} (difference {interval(row)})."
            )
    return lines


def fid_without_guidance(comparisons: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The comparisons that the report is about."""
    main = comparisons["reference"] == params.score.references[0]
    return comparisons[main & (comparisons["score"] == "fid") & (comparisons["guidance_scale"] == 1.0)]


def interval(row: pd.Series) -> str:
    if row["pairs"] == 1:
        return f"{row['mean']:+.3g}, one seed and so no interval"
    return (
        f"{row['mean']:+.3g}, standard error {row['standard_error']:.2g}, 95 % interval {row['low']:+.3g} to "
        f"{row['high']:+.3g}, adjusted p {row['adjusted_p']:.2g}, {row['pairs']} pairs"
    )


def caption(params: Params, summary: pd.DataFrame) -> str:
    counts = sorted({int(n) for n in summary["samples"]})
    return (
        f"Mean ± standard error over {len(params.align.seeds)} seeds (of alignment and sampling together; for the base, of "
        "sampling alone), and the 95 % percentile bootstrap interval over these seeds, which for so few is hardly more "
        f"than their range. Every set has {' or '.join(f'{n:,}' for n in counts)} images, against "
        f"`{params.score.references[0]}`. FID falls with the number of images: compare rows of one table only."
    )


def score_table(part: pd.DataFrame) -> str:
    shown = shown_scores(part)
    rows = [
        [row["model"], row["temperature"], row["guidance_scale"], *(with_interval(row, name) for name in shown)]
        for _, row in part.iterrows()
    ]
    return markdown_table(["model", "temperature", "guidance", *shown.values()], rows)


def shown_scores(part: pd.DataFrame) -> dict[str, str]:
    """Columns that a table has values of, and their titles."""
    return {name: title for name, title in SCORE_TITLES.items() if name in part and part[name].notna().any()}


def same_precision(matches: pd.DataFrame) -> str:
    """The control that tells improvement from sharpening: the temperature of the base that has a method's precision."""
    if matches.empty:
        return "No method was run."
    told = [
        f"{row['model']} ({row['precision']:.3f}) T {row['temperature']} ({row['base_precision']:.3f})"
        for _, row in matches.iterrows()
    ]
    return f"Temperature at which the base's precision comes nearest to that of a method, of those drawn: {'; '.join(told)}."


def floor(extractor: str, stages: dict[str, dict[str, float]]) -> list[str]:
    """What the tokenizer alone costs, if it was measured."""
    fid = stages.get("score", {}).get(f"reconstruction_fid {extractor}")
    if fid is None:
        return []
    return [f"The held-out images, only encoded and decoded by the tokenizer, have FID {fid:.4g} to themselves."]


def with_interval(row: pd.Series, name: str) -> str:
    """A mean with its standard error and bootstrap interval, where there is more than one seed."""
    if np.isnan(row[f"{name}_se"]):
        return f"{row[name]:.4g}"
    return f"{row[name]:.4g} ± {row[f'{name}_se']:.2g} [{row[f'{name}_low']:.4g}, {row[f'{name}_high']:.4g}]"


def difference(row: pd.Series) -> str:
    """A mean difference with its interval, where there is more than one pair."""
    return f"{row['mean']:+.3g}" + (f" [{row['low']:+.3g}, {row['high']:+.3g}]" if row["pairs"] > 1 else "")


def comparison_table(comparisons: pd.DataFrame) -> str:
    rows = [
        [
            row["extractor"],
            f"{row['against']}, T {row['temperature']}",
            f"{row['other']:.4g}",
            f"{row['value']:.4g}",
            difference(row),
            f"{row['adjusted_p']:.2g}" if row["pairs"] > 1 else "",
            WORDS[row["verdict"]],
        ]
        for _, row in comparisons.iterrows()
    ]
    return markdown_table(["extractor", "against", "its FID", "VA-π's FID", "difference", "adjusted p", "VA-π"], rows)


def cost_table(stages: dict[str, dict[str, float]]) -> str:
    rows = [
        [
            name,
            f"{m['seconds']:.0f}",
            f"{m['peak_memory_mb']:,.0f}",
            f"{m['images_per_second']:.4g}" if "images_per_second" in m else "",
        ]
        for name, m in stages.items()
    ]
    return markdown_table(["stage", "seconds", "peak memory, MB", "images/s"], rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)
