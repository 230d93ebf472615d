"""The words and tables of GenEval in reports/report.md, made from numbers alone."""

import pandas as pd

from pipelines.params import Params
from pipelines.report_text import markdown_table
from vapi_core.scoring.geneval_comparison import OVERALL


def geneval_findings(differences: pd.DataFrame, params: Params) -> list[str]:
    """What the overall differences say, as sentences; favourable or not."""
    if differences.empty:
        return []
    lines = []
    for _, row in differences[differences["task"] == OVERALL].iterrows():
        guidance = "without guidance" if row["guidance_scale"] == 1.0 else f"with guidance {row['guidance_scale']}"
        other = f"the {row['against']}" if row["against"] == "base" else str(row["against"])
        if row["temperature"] != params.sample.temperature:
            other += f" at temperature {row['temperature']}"
        lines.append(f"GenEval overall, {guidance}: against {other}, VA-π {verdict(row)} ({difference(row)}).")
    return lines


def verdict(row: pd.Series) -> str:
    """A difference is one where both intervals leave 0 out."""
    if row["low"] > 0 and row["seeds_low"] > 0:  # neither with one seed, whose interval is NaN
        return "is better"
    if row["high"] < 0 and row["seeds_high"] < 0:
        return "is worse"
    return "cannot be told apart"


def difference(row: pd.Series) -> str:
    over_seeds = f"over seeds {row['seeds_low']:+.3f} to {row['seeds_high']:+.3f}"
    if pd.isna(row["seeds_low"]):
        over_seeds = "one seed and so no interval over seeds"
    return f"{row['mean']:+.3f}, 95 % over prompts {row['low']:+.3f} to {row['high']:+.3f}, {over_seeds}"


def geneval_sections(
    table: pd.DataFrame, differences: pd.DataFrame, score_metrics: dict[str, float], params: Params
) -> list[str]:
    """The section of GenEval: what was asked, the detector's own accuracy, all scores, all differences."""
    assert params.score.geneval is not None
    tasks = list(dict.fromkeys(table["task"]))
    prompts = int(table.loc[table["task"] == OVERALL, "prompts"].iloc[0])
    intro = (
        f"{prompts} prompts, {params.sample.count} images each. Mean ± standard error over "
        f"{len(params.align.seeds)} seeds [95 % bootstrap interval over prompts]; overall is the mean of the tasks. "
        f"Detector: `{params.score.geneval.detector}`. {detector_sentence(score_metrics)}"
    )
    rows = [
        [*key, *(cell(part[part["task"] == task].iloc[0]) for task in tasks)]
        for key, part in table.groupby(["model", "temperature", "guidance_scale"], sort=False)
    ]
    sections = ["## GenEval\n\n" + intro + "\n\n" + markdown_table(["model", "temperature", "guidance", *tasks], rows)]
    if not differences.empty:
        rows = [
            [*key, *(signed(part[part["task"] == task].iloc[0]) for task in tasks)]
            for key, part in differences.groupby(["against", "temperature", "guidance_scale"], sort=False)
        ]
        sections.append(
            "### VA-π minus everything else, on the same prompts and seeds\n\n"
            "Difference [95 % over prompts] [95 % over seeds]: above 0 is better. A difference counts only where both "
            "intervals leave 0 out: **bold**. Six tasks are six looks: take single tasks for hints.\n\n"
            + markdown_table(["against", "temperature", "guidance", *tasks], rows)
        )
    return sections


def detector_sentence(score_metrics: dict[str, float]) -> str:
    if "detector_accuracy" not in score_metrics:
        return "Published scores use another detector: docs/text-to-image.md."
    return (
        f"On reference scenes of held-out digits {score_metrics['detector_accuracy']:.1%} of its decisions are right: "
        f"{score_metrics['detector_accuracy_fulfilled']:.1%} over scenes judged by their own request, "
        f"{score_metrics['detector_accuracy_foreign']:.1%} over scenes judged by another's. Their reconstructions by the "
        f"tokenizer score {score_metrics['reconstruction_geneval']:.3f}, each by its scene's request: what tokens can hold."
    )


def cell(row: pd.Series) -> str:
    error = "" if pd.isna(row["standard_error"]) else f" ± {row['standard_error']:.3f}"
    return f"{row['mean']:.3f}{error} [{row['low']:.2f}, {row['high']:.2f}]"


def signed(row: pd.Series) -> str:
    mean = f"{row['mean']:+.3f}"
    mean = mean if verdict(row) == "cannot be told apart" else f"**{mean}**"
    over_seeds = "" if pd.isna(row["seeds_low"]) else f" [{row['seeds_low']:+.2f}, {row['seeds_high']:+.2f}]"
    return f"{mean} [{row['low']:+.2f}, {row['high']:+.2f}]{over_seeds}"
