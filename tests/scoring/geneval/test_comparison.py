"""Scores of several seeds and their uncertainty, over seeds and over prompts."""

import numpy as np
import pytest

from vapi_core.scoring.geneval.comparison import OVERALL, task_scores

TASKS = ["colors"] * 4 + ["counting"] * 2
SHARES = np.array([[1.0, 0.5, 0.5, 0.0, 1.0, 0.5], [1.0, 1.0, 0.5, 0.5, 1.0, 0.0]])  # two seeds


def test_overall_is_the_mean_of_the_tasks_not_of_the_prompts():
    scores = {score.task: score for score in task_scores(SHARES, TASKS)}
    assert list(scores) == ["colors", "counting", OVERALL]
    assert scores["colors"].mean == pytest.approx(0.625)
    assert scores[OVERALL].mean == pytest.approx((0.625 + 0.625) / 2)
    assert (scores["colors"].prompts, scores[OVERALL].prompts) == (4, 6)


def test_standard_error_is_over_seeds_and_the_interval_over_prompts():
    colors = task_scores(SHARES, TASKS)[0]
    assert colors.standard_error == pytest.approx(np.std([0.5, 0.75], ddof=1) / np.sqrt(2))
    assert colors.low < colors.mean < colors.high
    assert colors.seeds_low < 0.5 and colors.seeds_high > 0.75


def test_one_seed_has_an_interval_over_prompts_only():
    colors = task_scores(SHARES[:1], TASKS)[0]
    assert np.isnan(colors.standard_error) and np.isnan(colors.seeds_low)
    assert colors.low <= colors.mean <= colors.high


def test_equal_models_do_not_differ():
    for score in task_scores(SHARES - SHARES, TASKS):
        assert score.mean == score.low == score.high == score.seeds_low == score.seeds_high == 0
