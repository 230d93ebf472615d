"""The words and tables of reports/report.md, made from numbers alone: the report says what was measured, either way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.params import Params
from vapi_core.files import atomic_path

TARGET = 0.25  # the share of the base's FID that VA-π should take away


def write_report(
    path: Path,
    params: Params,
    summary: pd.DataFrame,
    comparisons: pd.DataFrame,
    stages: dict[str, dict[str, float]],
) -> None:
    """Writes the report. `stages` maps a stage's name to its metrics."""
    main = params.score.reference_splits[0]
    sections = [
        f"# VA-π on profile `{params.profile}`",
        what_was_run(params, stages),
        "## Findings\n\n" + "\n".join(f"- {line}" for line in findings(summary, comparisons, params)),
        f"## Scores against the split `{main}`\n\n" + caption(params),
        *(
            f"### {extractor}\n\n" + score_table(part[part["reference"] == main]) + floor(str(extractor), stages)
            for extractor, part in summary.groupby("extractor", sort=False)
        ),
        "## VA-π against everything else, without guidance\n\n"
        "Difference of FID, VA-π at temperature "
        f"{params.sample.temperature} minus the other, paired by seed: below 0 is better. The interval is Student's t at "
        "95 %; a difference counts only where the interval leaves 0 out.\n\n" + comparison_table(comparisons),
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


def findings(summary: pd.DataFrame, comparisons: pd.DataFrame, params: Params) -> list[str]:
    """What the numbers say about the project's targets, as sentences; favourable or not."""
    if comparisons.empty:
        return ["VA-π was not among the methods of this run."]
    lines = []
    main = comparisons[comparisons["reference"] == params.score.reference_splits[0]]
    for extractor, part in main.groupby("extractor", sort=False):
        base = part[(part["against"] == "base") & (part["temperature"] == params.sample.temperature)].iloc[0]
        change = base["difference"] / base["fid"]
        clear = base["difference"] < -2 * base["standard_error"]
        verdict = "met" if change <= -TARGET and clear else "missed"
        lines.append(
            f"{extractor}: FID {base['fid']:.4g} → {base['va_pi_fid']:.4g}, {change:+.0%} against the base at "
            f"temperature {base['temperature']} (difference {interval(base)}, standard error "
            f"{base['standard_error']:.2g}); the target, {-TARGET:.0%} and more than twice the standard error, is "
            f"{verdict}."
        )
        controls = part[(part["against"] == "base") & (part["temperature"] != params.sample.temperature)]
        if len(controls):
            best = controls.sort_values("fid").iloc[0]
            lines.append(
                f"{extractor}: the base's best other temperature, {best['temperature']}, has FID {best['fid']:.4g}; "
                f"VA-π {verdict_of(best)} (difference {interval(best)})."
            )
        for _, row in part[part["against"] != "base"].iterrows():
            lines.append(f"{extractor}: against {row['against']}, VA-π {verdict_of(row)} (difference {interval(row)}).")
    return lines


def verdict_of(row: pd.Series) -> str:
    """Whether a difference of FID is one, from its interval."""
    if row["high"] < 0:
        return "is better"
    if row["low"] > 0:
        return "is worse"
    return "cannot be told apart"


def interval(row: pd.Series) -> str:
    return f"{row['difference']:+.3g}, 95 % interval {row['low']:+.3g} to {row['high']:+.3g}, {row['pairs']} pairs"


def caption(params: Params) -> str:
    return (
        f"Mean ± standard error over {len(params.align.seeds)} seeds (alignment and sampling together; for the base, of "
        f"sampling alone). Every set has {params.sample.count:,} images; FID falls with the number of images, so compare "
        "rows of one table only."
    )


def score_table(part: pd.DataFrame) -> str:
    names = {
        "fid": "FID",
        "is_mean": "IS",
        "kid_mean": "KID",
        "precision": "precision",
        "recall": "recall",
        "accuracy": "accuracy",
    }
    shown = {name: title for name, title in names.items() if name in part and part[name].notna().any()}
    rows = [
        [row["model"], row["temperature"], row["guidance_scale"], *(plus_minus(row, name) for name in shown)]
        for _, row in part.iterrows()
    ]
    return markdown_table(["model", "temperature", "guidance", *shown.values()], rows)


def floor(extractor: str, stages: dict[str, dict[str, float]]) -> str:
    """What the tokenizer alone costs."""
    fid = stages.get("score", {}).get(f"reconstruction_fid {extractor}")
    return "" if fid is None else f"\n\nThe same images, only encoded and decoded by the tokenizer, have FID {fid:.4g}."


def plus_minus(row: pd.Series, name: str) -> str:
    error = row[f"{name}_se"]
    return f"{row[name]:.4g}" if np.isnan(error) else f"{row[name]:.4g} ± {error:.2g}"


def comparison_table(comparisons: pd.DataFrame) -> str:
    rows = [
        [
            row["extractor"],
            row["reference"],
            f"{row['against']}, T {row['temperature']}",
            f"{row['fid']:.4g}",
            f"{row['va_pi_fid']:.4g}",
            f"{row['difference']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]",
            verdict_of(row),
        ]
        for _, row in comparisons.iterrows()
    ]
    return markdown_table(["extractor", "reference", "against", "its FID", "VA-π's FID", "difference", "VA-π"], rows)


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
