"""A difference is called one only where the test does, in both directions."""

from itertools import pairwise

import pandas as pd
import pytest
from pipelines.reporting.statistics import compare, main_question, match_temperatures, nested, summarize

BASE_PRECISION = {1.0: 0.6, 0.9: 0.7, 0.8: 0.8}


def rows(model, temperature, guidance, fids, precision):
    return [
        {
            "model": model,
            "seed": seed,
            "temperature": temperature,
            "guidance_scale": guidance,
            "extractor": "scorer-classifier",
            "reference": "heldout",
            "fid": fid,
            "is_mean": 9.0 + 0.1 * seed,
            "precision": precision + 0.001 * seed,
            "recall": 0.6,
            "samples": 1000,
        }
        for seed, fid in enumerate(fids)
    ]


def table(aligned=(10.0, 10.1, 9.9), rival=(20.0, 20.1, 19.9), sharpened=(9.0, 13.0, 8.0)):
    made = [row for t, p in BASE_PRECISION.items() if t != 0.9 for row in rows("base", t, 1.0, [30.0, 31.0, 29.5], p)]
    made += rows("base", 0.9, 1.0, sharpened, BASE_PRECISION[0.9])
    made += rows("base", 1.0, 1.5, [15.0, 15.5, 14.8], 0.8)
    made += rows("va-pi", 1.0, 1.0, aligned, 0.72) + rows("va-pi", 1.0, 1.5, [15.2, 15.1, 15.0], 0.85)
    made += rows("ste", 1.0, 1.0, rival, 0.61) + rows("ste", 1.0, 1.5, [5.0, 5.3, 4.9], 0.9)
    return pd.DataFrame(made)


def compared(scores):
    return compare(scores, 1.0, match_temperatures(summarize(scores), 1.0))


def verdicts(scores, score="fid"):
    part = compared(scores)
    part = part[part["score"] == score]
    return {(row["against"], row["temperature"], row["guidance_scale"]): row["verdict"] for _, row in part.iterrows()}


def test_a_clear_gain_is_a_win_a_clear_loss_a_loss_and_the_rest_a_tie():
    assert verdicts(table()) == {
        ("base", 1.0, 1.0): "win",
        ("base", 0.9, 1.0): "tie",  # its seeds differ too much to tell
        ("ste", 1.0, 1.0): "win",
        ("base", 1.0, 1.5): "tie",
        ("ste", 1.0, 1.5): "loss",
    }


def fid_of(scores, guidance=1.0):
    part = compared(scores)
    return part[(part["score"] == "fid") & (part["guidance_scale"] == guidance)].set_index(["against", "temperature"])


def test_a_difference_that_only_an_unadjusted_test_passes_is_a_tie():
    scores = pd.concat([table(), pd.DataFrame(rows("ar-grpo", 1.0, 1.0, [9.0, 10.5, 11.9], 0.61))])
    scores.loc[(scores["model"] == "ste") & (scores["guidance_scale"] == 1.0), "fid"] = [11.0, 11.3, 10.5]
    fid = fid_of(scores)
    row = fid.loc[("ste", 1.0)]
    assert row["p_value"] < 0.05 < row["adjusted_p"] and row["verdict"] == "tie"
    assert row["adjusted_p"] == pytest.approx(2 * row["p_value"])  # of two rivals: the main question is not counted


def test_the_main_question_is_asked_in_its_order_and_each_answer_counts_only_if_all_before_it_do():
    continued = pd.DataFrame(rows("cross-entropy", 1.0, 1.0, [31.0, 32.5, 30.3], 0.61))
    fid = fid_of(pd.concat([table([28.0, 29.2, 27.6], sharpened=[20.0, 21.2, 19.8]), continued]))
    asked = [fid.loc[key] for key in (("base", 1.0), ("cross-entropy", 1.0), ("base", 0.9))]
    assert asked[0]["adjusted_p"] == asked[0]["p_value"]
    for before, row in pairwise(asked):
        assert row["adjusted_p"] == max(before["adjusted_p"], row["p_value"])
    assert [row["verdict"] for row in asked] == ["win", "win", "loss"]
    within_the_noise = pd.DataFrame(rows("cross-entropy", 1.0, 1.0, [20.0, 40.0, 25.0], 0.61))
    fid = fid_of(pd.concat([table([28.0, 29.2, 27.6], sharpened=[20.0, 21.2, 19.8]), within_the_noise]))
    assert fid.loc[("base", 1.0)]["verdict"] == "win"
    assert fid.loc[("base", 0.9)]["p_value"] < 0.05 and fid.loc[("base", 0.9)]["verdict"] == "tie"


def test_temperatures_are_asked_about_from_high_to_low_after_the_controls():
    others = [("base", 0.6), ("ste", 1.0), ("cross-entropy", 1.0), ("base", 0.8), ("base", 1.0)]
    assert main_question(others, 1.0) == [("base", 1.0), ("cross-entropy", 1.0), ("base", 0.8), ("base", 0.6)]


def test_more_is_better_for_all_scores_but_distances():
    scores = table()
    scores.loc[scores["model"] == "va-pi", "recall"] = 0.9
    assert set(verdicts(scores, "recall").values()) == {"win"}


def test_every_method_is_matched_with_the_temperature_of_the_base_that_has_its_precision():
    matches = match_temperatures(summarize(table()), 1.0).set_index("model")["temperature"]
    assert matches.to_dict() == {"va-pi": 0.9, "ste": 1.0}


def test_the_summary_has_mean_standard_error_and_a_bootstrap_interval_between_the_extremes():
    row = summarize(table()).query("model == 'ste' and guidance_scale == 1.0").iloc[0]
    assert row["fid"] == pytest.approx(20.0) and row["fid_se"] == pytest.approx(0.1 / 3**0.5)
    assert 19.9 <= row["fid_low"] < 20.0 < row["fid_high"] <= 20.1
    assert row["seeds"] == 3 and row["samples"] == 1000


def test_metrics_are_nested_by_extractor_and_setting():
    metrics = nested(summarize(table()))
    assert metrics["scorer-classifier"]["va-pi T=1.0 g=1.0"]["fid"] == 10.0
    assert metrics["scorer-classifier"]["base T=0.9 g=1.0"]["samples"] == 1000


def test_differences_are_paired_by_seed():
    scores = table(aligned=[29.0, 30.0, 28.5])  # each 1 below the base of its seed, which vary more than that
    row = compare(scores, 1.0).query("against == 'base' and temperature == 1.0 and score == 'fid'").iloc[0]
    assert row["mean"] == pytest.approx(-1.0) and row["high"] < 0 and row["verdict"] == "win"


def test_all_temperatures_of_the_base_are_compared_unless_some_are_matched():
    scores = table()
    plain = compare(scores, 1.0).query("against == 'base' and guidance_scale == 1.0 and score == 'fid'")
    assert set(plain["temperature"]) == set(BASE_PRECISION)
