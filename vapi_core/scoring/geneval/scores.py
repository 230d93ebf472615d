"""GenEval's scores: the official summary, with standard errors and bootstrap intervals.

The images of one prompt are alike, so the unit of the uncertainty is the prompt: standard errors are those of a mean
over prompts, the bootstrap draws prompts with all their images. It draws within each task, because how many prompts a
task has is fixed by the benchmark.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vapi_core.errors import ParameterError
from vapi_core.randomness import derive_seed
from vapi_core.scoring.geneval.folder import GenEvalResult
from vapi_core.scoring.statistics import CONFIDENCE, REPLICATES, bootstrap_metric, mean_and_standard_error


@dataclass(frozen=True)
class Score:
    """A share of correct images (of the overall score: the mean of the tasks' shares) and its uncertainty."""

    mean: float
    standard_error: float  # NaN where a task has one prompt
    low: float  # bootstrap interval of 95 %
    high: float
    correct: int
    images: int
    prompts: int


@dataclass(frozen=True)
class GenEvalScores:
    detector: str  # and options, as the results name them
    overall: Score
    tasks: dict[str, Score]  # in the order of the results
    images: int
    prompts: int
    correct_images: float  # share of the images
    correct_prompts: float  # share of the prompts with at least one correct image


def summarize(results: Sequence[GenEvalResult], seed: int = 0, replicates: int = REPLICATES) -> GenEvalScores:
    """Scores of all results, as the official `summary_scores.py` has them.

    Raises:
        ParameterError: no results, or results of several detectors.
    """
    detectors = sorted({result.detector or "not named in the results" for result in results})
    if len(detectors) != 1:
        raise ParameterError("results", f"scores need results of one detector; there are {detectors or 'none'}.")
    tasks: dict[str, Score] = {}
    draws = []
    for task in dict.fromkeys(result.tag for result in results):
        correct, images = _per_prompt([result for result in results if result.tag == task])
        tasks[task], drawn = _score(correct, images, derive_seed(seed, f"geneval {task}"), replicates)
        draws.append(drawn)
    overall_draws = np.mean(draws, axis=0)
    error = float(np.sqrt(sum(score.standard_error**2 for score in tasks.values()))) / len(tasks)
    correct, images = _per_prompt(results)
    overall = Score(
        float(np.mean([score.mean for score in tasks.values()])),
        error,
        *_interval(overall_draws),
        int(correct.sum()),
        len(results),
        len(images),
    )
    return GenEvalScores(
        detectors[0],
        overall,
        tasks,
        len(results),
        len(images),
        float(correct.sum() / images.sum()),
        float((correct > 0).mean()),
    )


def _per_prompt(results: Sequence[GenEvalResult]) -> tuple[np.ndarray, np.ndarray]:
    """Correct images and images of every prompt, int64 [prompts] each. As officially, equal metadata is one prompt."""
    keys = {key: i for i, key in enumerate(dict.fromkeys(result.metadata for result in results))}
    index = [keys[result.metadata] for result in results]
    return np.bincount(index, [result.correct for result in results]).astype(np.int64), np.bincount(index)


def _score(correct: np.ndarray, images: np.ndarray, seed: int, replicates: int) -> tuple[Score, np.ndarray]:
    """The score of one task, and its bootstrap draws [replicates]."""
    mean = float(correct.sum() / images.sum())
    # what each prompt adds to the ratio: where all have as many images, the plain means of the prompts
    linearized = mean + (correct - mean * images) / images.mean()
    draws = bootstrap_metric(lambda i: float(correct[i].sum() / images[i].sum()), len(images), replicates, seed)
    _, error = mean_and_standard_error(linearized)
    return Score(mean, error, *_interval(draws), int(correct.sum()), int(images.sum()), len(images)), draws


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def json_ready(scores: GenEvalScores) -> dict[str, Any]:
    """The scores for a JSON file, which knows no NaN: null there."""
    values = asdict(scores)
    for score in (values["overall"], *values["tasks"].values()):
        score["standard_error"] = None if math.isnan(score["standard_error"]) else score["standard_error"]
    return values


def official_text(scores: GenEvalScores) -> str:
    """What the official `summary_scores.py` prints, to the letter."""
    tasks = "".join(f"{t:<16} = {s.mean:.2%} ({s.correct} / {s.images})\n" for t, s in scores.tasks.items())
    return (
        f"Summary\n=======\nTotal images: {scores.images}\nTotal prompts: {scores.prompts}\n"
        f"% correct images: {scores.correct_images:.2%}\n% correct prompts: {scores.correct_prompts:.2%}\n\n"
        f"Task breakdown\n==============\n{tasks}\nOverall score (avg. over tasks): {scores.overall.mean:.5f}\n"
    )


def score_table(scores: GenEvalScores) -> str:
    """Scores per task and overall with their uncertainty, as a Markdown table under the detector's name."""
    lines = [
        f"Detector: {scores.detector}",
        "",
        "| task | score | standard error | 95 % interval | correct | images | prompts |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, s in [*scores.tasks.items(), ("overall", scores.overall)]:
        interval = f"{s.low:.4f} - {s.high:.4f}"
        error = "" if math.isnan(s.standard_error) else f"{s.standard_error:.4f}"
        lines.append(f"| {name} | {s.mean:.4f} | {error} | {interval} | {s.correct} | {s.images} | {s.prompts} |")
    return "\n".join(lines) + "\n"
