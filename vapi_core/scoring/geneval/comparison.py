"""GenEval of a model over several seeds, and the difference of two models on the same prompts and seeds.

Every prompt has as many images under every seed, so a model is a matrix of shares: correct images of a prompt, [seeds,
prompts]. Two uncertainties are told apart: over seeds, which hold alignment and sampling (standard error, Student's t),
and over prompts, of which the benchmark is one draw (bootstrap within each task, as in `geneval_scores`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vapi_core.randomness import stream
from vapi_core.scoring.statistics import CONFIDENCE, REPLICATES, mean_and_standard_error, paired_difference

OVERALL = "overall"


@dataclass(frozen=True)
class TaskScore:
    """A score, or a difference of scores, of one task or overall (the mean of the tasks)."""

    task: str
    mean: float
    standard_error: float  # over seeds; NaN for one
    low: float  # bootstrap over prompts
    high: float
    seeds_low: float  # Student's t over seeds; NaN for one
    seeds_high: float
    prompts: int


def task_scores(shares: np.ndarray, tasks: Sequence[str], seed: int = 0) -> list[TaskScore]:
    """Scores per task, in their order of appearance, and overall.

    Args:
        shares: of correct images, or differences of such shares, float [seeds, prompts].
        tasks: of the prompts.
    """
    assert shares.shape[1] == len(tasks)
    names = list(dict.fromkeys(tasks))
    by_seed, draws = [], []  # per task: [seeds], [replicates]
    for number, name in enumerate(names):
        part = shares[:, [task == name for task in tasks]]  # [seeds, n]
        by_seed.append(part.mean(1))
        items = stream(seed, "geneval prompts", number).integers(part.shape[1], size=(REPLICATES, part.shape[1]))
        draws.append(part.mean(0)[items].mean(1))
    counts = [sum(task == name for task in tasks) for name in names]
    rows = [*zip(names, by_seed, draws, counts, strict=True)]
    rows.append((OVERALL, np.mean(by_seed, axis=0), np.mean(draws, axis=0), len(tasks)))
    return [_score(*row) for row in rows]


def _score(task: str, by_seed: np.ndarray, draws: np.ndarray, prompts: int) -> TaskScore:
    mean, error = mean_and_standard_error(by_seed)
    over_seeds = paired_difference(by_seed, np.zeros_like(by_seed))
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return TaskScore(task, mean, error, float(low), float(high), over_seeds.low, over_seeds.high, prompts)
