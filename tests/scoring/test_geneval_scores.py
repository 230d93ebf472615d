"""Summary, standard errors and intervals over prompts."""

import io
import json

import numpy as np
import pandas as pd
import pytest

from vapi_core.errors import ParameterError
from vapi_core.scoring.geneval_folder import GenEvalResult, Prompt, write_results
from vapi_core.scoring.geneval_scores import json_ready, official_text, score_table, summarize


def results(task: str, prompts: list[list[bool]], detector: str = "a detector") -> list[GenEvalResult]:
    return [
        GenEvalResult.of(f"{i}/{j}.png", Prompt({"tag": task, "prompt": f"{task} {i}"}), correct, "", {}, detector)
        for i, images in enumerate(prompts)
        for j, correct in enumerate(images)
    ]


HALF = [[True, False]] * 10
ALL_OR_NOTHING = [[True, True], [False, False]] * 5


def test_the_overall_score_is_the_mean_of_the_tasks_not_of_the_images():
    scores = summarize(results("colors", [[True]] * 30) + results("counting", [[False]] * 10))
    assert scores.overall.mean == 0.5 and scores.correct_images == 0.75 and scores.correct_prompts == 0.75
    assert list(scores.tasks) == ["colors", "counting"] and scores.tasks["colors"].images == 30


def test_images_of_one_prompt_are_no_independent_evidence():
    alike, mixed = summarize(results("colors", ALL_OR_NOTHING)).overall, summarize(results("colors", HALF)).overall
    assert alike.mean == mixed.mean == 0.5
    assert mixed.standard_error == 0 and (mixed.low, mixed.high) == (0.5, 0.5)
    assert alike.standard_error == pytest.approx(np.std([1, 0] * 5, ddof=1) / 10**0.5)
    assert alike.low < 0.3 and alike.high > 0.7


def test_prompts_of_unequal_size_weigh_by_their_images():
    scores = summarize(results("colors", [[True] * 3, [False]]))
    assert scores.overall.mean == 0.75 and scores.overall.prompts == 2


def test_one_prompt_alone_has_no_standard_error_and_json_no_nan():
    scores = summarize(results("colors", [[True, False]]))
    assert np.isnan(scores.overall.standard_error)
    assert "| overall | 0.5000 |  | " in score_table(scores) and "nan" not in score_table(scores)
    assert json.loads(json.dumps(json_ready(scores), allow_nan=False))["overall"]["standard_error"] is None


def test_tasks_of_equal_size_are_drawn_independently():
    tasks = [result for name in "abcd" for result in results(name, ALL_OR_NOTHING)]
    one, four = summarize(results("a", ALL_OR_NOTHING)).overall, summarize(tasks).overall
    assert four.standard_error == pytest.approx(one.standard_error / 2)
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2, rel=0.2)


def test_the_same_seed_gives_the_same_interval():
    assert summarize(results("a", ALL_OR_NOTHING), seed=3) == summarize(results("a", ALL_OR_NOTHING), seed=3)


def test_results_of_two_detectors_and_no_results_have_no_score():
    with pytest.raises(ParameterError, match="results of one detector; there are .*'a', 'b'"):
        summarize(results("x", HALF, "a") + results("x", HALF, "b"))
    with pytest.raises(ParameterError, match="there are none"):
        summarize([])


def test_the_table_names_the_detector_and_has_a_row_for_each_task():
    table = score_table(summarize(results("colors", ALL_OR_NOTHING)))
    assert table.startswith("Detector: a detector\n")
    assert "| colors | 0.5000 | 0.1667 | 0." in table and "| overall | 0.5000 |" in table


def test_the_file_says_to_pandas_what_the_summary_says(tmp_path):
    """The official summary reads results.jsonl with pandas."""
    given = results("colors", [[True, False, False], [False] * 3]) + results("position", [[True]])
    write_results(tmp_path / "results.jsonl", given)
    frame = pd.read_json(io.StringIO((tmp_path / "results.jsonl").read_text()), orient="records", lines=True)
    scores = summarize(given)
    assert frame.groupby("tag", sort=False)["correct"].mean().to_dict() == {t: s.mean for t, s in scores.tasks.items()}
    assert frame.groupby("metadata")["correct"].any().mean() == pytest.approx(scores.correct_prompts)
    assert f"colors           = {1 / 6:.2%} (1 / 6)\n" in official_text(scores)
    assert json.loads(frame["metadata"][0])["prompt"] == "colors 0"
