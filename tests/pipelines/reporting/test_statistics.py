"""A difference is called one only where the rule says so, in both directions and under all extractors together."""

import numpy as np
import pandas as pd
import pytest

from pipelines.reporting.statistics import (
    BETTER,
    NO_DIFFERENCE,
    NOT_TESTED,
    WORSE,
    Claim,
    blind_extractors,
    compare,
    in_order,
    match_temperatures,
    nested,
    summarize,
    summarize_tasks,
    verdict_of,
)
from pipelines.variants.score_files import overall_scores, whole_alignments
from vapi_core.scoring.statistics import smallest_difference

BASE_PRECISION = {1.0: 0.6, 0.9: 0.7, 0.8: 0.8}
SUBJECT = "va-pi"
AGAINST_BASE, AGAINST_STE = Claim("beats base", SUBJECT, "base"), Claim("beats ste", SUBJECT, "ste")
AGAINST_COOLED = Claim("beats base at T 0.9", SUBJECT, "base at T 0.9")
CLAIMS = [AGAINST_BASE, AGAINST_STE, AGAINST_COOLED]


def rows(row, fids, precision=0.6, temperature=1.0, guidance=1.0, extractor="scorer-classifier"):
    return pd.DataFrame(
        {
            "row": row,
            "seed": seed,
            "steps": None,
            "temperature": temperature,
            "guidance_scale": guidance,
            "extractor": extractor,
            "reference": "heldout",
            "fid": fid,
            "is_mean": 9.0 + 0.1 * seed,
            "precision": precision + 0.001 * seed,
            "recall": 0.6,
            "samples": 1000,
        }
        for seed, fid in enumerate(fids)
    )


def table(aligned=(10.0, 10.1, 9.9), rival=(20.0, 20.1, 19.9), cooled=(9.0, 13.0, 8.0)):
    return pd.concat(
        [
            rows("base", [30.0, 31.0, 29.5], BASE_PRECISION[1.0]),
            rows("base at T 0.9", cooled, BASE_PRECISION[0.9], 0.9),
            rows("base at T 0.8", [30.0, 31.0, 29.5], BASE_PRECISION[0.8], 0.8),
            rows("base", [15.0, 15.5, 14.8], 0.8, guidance=1.5),
            rows(SUBJECT, aligned, 0.72),
            rows(SUBJECT, [15.2, 15.1, 15.0], 0.85, guidance=1.5),
            rows("ste", rival, 0.61),
            rows("ste", [5.0, 5.3, 4.9], 0.9, guidance=1.5),
        ]
    )


def compared(scores, claims=CLAIMS, names=("fid",), main=None):
    return compare(scores, claims, names, main).set_index(["worse", "guidance_scale"])


# Verdicts


def test_a_clear_gain_is_better_a_clear_loss_worse_and_within_the_noise_no_difference_is_found():
    assert compared(table())["verdict"].to_dict() == {
        ("base", 1.0): BETTER,
        ("ste", 1.0): BETTER,
        ("base at T 0.9", 1.0): NO_DIFFERENCE,  # its seeds differ too much to tell
        ("base", 1.5): NO_DIFFERENCE,
        ("ste", 1.5): WORSE,
    }


@pytest.mark.parametrize(
    ("difference", "p", "lower_is_better", "verdict"),
    [
        (-1.0, 0.01, True, BETTER),
        (+1.0, 0.01, True, WORSE),
        (-1.0, 0.01, False, WORSE),
        (+1.0, 0.01, False, BETTER),
        (-1.0, 0.05, True, NO_DIFFERENCE),  # below the level, not at it
        (-1.0, float("nan"), True, NOT_TESTED),
    ],
)
def test_a_verdict_is_on_the_row_that_is_claimed_to_be_better(difference, p, lower_is_better, verdict):
    assert verdict_of(difference, p, lower_is_better) == verdict


def test_less_is_better_for_distances_alone():
    scores = table()
    scores["kid_mean"], scores.loc[scores["row"] == SUBJECT, "recall"] = scores["fid"], 0.9
    verdicts = compare(scores, [AGAINST_BASE], ("fid", "kid_mean", "recall", "is_mean"))
    plain = verdicts[verdicts["guidance_scale"] == 1.0].set_index("score")["verdict"]
    assert plain.to_dict() == {"fid": BETTER, "kid_mean": BETTER, "recall": BETTER, "is_mean": NO_DIFFERENCE}


@pytest.mark.filterwarnings("error")
def test_with_one_seed_nothing_is_tested_and_nothing_better():
    one = table().query("seed == 0")
    for main in (None, ("fid", 1.0)):
        found = compared(one, main=main)
        assert set(found["verdict"]) == {NOT_TESTED}
        assert found[["p_value", "adjusted_p", "low", "high", "smallest"]].isna().all(axis=None)
        assert found.loc[("base", 1.0), "mean"] == -20.0


def test_differences_are_paired_by_seed_whatever_the_order_of_the_rows():
    scores = table(aligned=[29.0, 30.0, 28.5])  # each 1 below the base of its seed, which vary more than that
    for shuffled in (scores, scores.iloc[::-1]):
        row = compared(shuffled, [AGAINST_BASE]).loc[("base", 1.0)]
        assert row["mean"] == pytest.approx(-1.0) and row["high"] < 0 and row["verdict"] == BETTER


def test_claims_about_rows_or_scores_that_are_not_there_are_not_made():
    assert compare(table(), [Claim("beats ar-grpo", SUBJECT, "ar-grpo")], ("fid",)).empty
    assert compare(table(), CLAIMS, ("overall",)).empty
    cooled = compared(table(), [AGAINST_COOLED])
    assert list(cooled.index) == [("base at T 0.9", 1.0)]  # it was drawn without guidance only


# Families


def test_a_difference_that_only_an_unadjusted_test_passes_is_none():
    scores = table(rival=[11.0, 11.3, 10.5], cooled=[9.0, 10.5, 11.9])
    row = compared(scores, [AGAINST_STE, AGAINST_COOLED]).loc[("ste", 1.0)]
    assert row["p_value"] < 0.05 < row["adjusted_p"] and row["verdict"] == NO_DIFFERENCE
    assert row["adjusted_p"] == pytest.approx(2 * row["p_value"])


def test_a_family_is_one_score_and_guidance_scale_under_all_extractors():
    scores = table()
    alone = compare(scores, [AGAINST_STE], ("fid",))
    assert (alone["adjusted_p"] == alone["p_value"]).all()  # two guidance scales are two families
    both = pd.concat([scores, scores.assign(extractor="efficientnet-lite0")])
    together = compare(both, [AGAINST_STE], ("fid", "is_mean")).query("score == 'fid'")
    assert together["adjusted_p"].to_numpy() == pytest.approx(np.minimum(1, 2 * together["p_value"]).to_numpy())
    assert list(together["extractor"].unique()) == ["scorer-classifier", "efficientnet-lite0"]


def test_the_smallest_difference_that_could_be_seen_grows_with_the_family():
    found = compared(table())
    row = found.loc[("base", 1.0)]
    assert row["smallest"] == pytest.approx(smallest_difference(row["standard_error"], 3, 1 - 0.05 / 3))
    alone = compared(table(), [AGAINST_BASE]).loc[("base", 1.0)]
    ordered = compared(table(), main=("fid", 1.0)).loc[("base", 1.0)]
    assert alone["smallest"] == ordered["smallest"] < row["smallest"]


# A main question in order


def test_the_main_question_is_asked_in_its_order_and_p_is_the_largest_so_far():
    scores = table([28.0, 29.2, 27.6], rival=[31.0, 32.5, 30.3], cooled=[20.0, 21.2, 19.8])
    asked = compare(scores, CLAIMS, ("fid",), main=("fid", 1.0)).query("guidance_scale == 1.0")
    assert list(asked["text"]) == [claim.text for claim in CLAIMS]
    assert asked["adjusted_p"].to_numpy() == pytest.approx(np.maximum.accumulate(asked["p_value"]).to_numpy())
    assert list(asked["verdict"]) == [BETTER, BETTER, WORSE]  # a loss is a difference too and stops nothing


def test_what_stands_behind_the_first_that_finds_no_difference_is_not_tested():
    scores = table([28.0, 29.2, 27.6], rival=[20.0, 40.0, 25.0], cooled=[20.0, 21.2, 19.8])
    found = compared(scores, main=("fid", 1.0))
    assert found.loc[("base", 1.0), "verdict"] == BETTER
    assert found.loc[("ste", 1.0), "verdict"] == NO_DIFFERENCE
    cooled = found.loc[("base at T 0.9", 1.0)]
    assert cooled["p_value"] < 0.05 and np.isnan(cooled["adjusted_p"]) and cooled["verdict"] == NOT_TESTED
    assert found.loc[("ste", 1.5), "verdict"] == WORSE  # no part of the main question


def test_a_claim_of_an_order_needs_all_extractors():
    family = [
        {"text": "first", "p_value": 0.01},
        {"text": "first", "p_value": 0.02},
        {"text": "second", "p_value": 0.001},
        {"text": "second", "p_value": 0.3},
        {"text": "third", "p_value": 0.001},
    ]
    adjusted = in_order(family)
    assert adjusted[:4] == pytest.approx([0.02, 0.02, 0.02, 0.3]) and np.isnan(adjusted[4])


# Summaries


def test_the_summary_has_mean_standard_error_and_students_interval():
    row = summarize(table()).query("row == 'ste' and guidance_scale == 1.0").iloc[0]
    assert row["fid"] == pytest.approx(20.0) and row["fid_se"] == pytest.approx(0.1 / 3**0.5)
    assert row["fid_high"] - row["fid"] == pytest.approx(4.3027 * row["fid_se"], rel=1e-3)  # t of 2 degrees of freedom
    assert row["seeds"] == 3 and row["samples"] == 1000


def test_sets_of_alignments_on_their_way_are_no_part_of_a_mean():
    scores = pd.concat([table(), rows(SUBJECT, [99.0], 0.1).assign(steps=20)])
    assert len(whole_alignments(scores)) == len(table())


def test_every_row_is_matched_with_the_temperature_of_the_base_that_has_its_precision():
    matches = match_temperatures(summarize(table()), "base", 1.0).set_index("row")["temperature"]
    assert matches.to_dict() == {SUBJECT: 0.9, "ste": 1.0}


def test_metrics_are_nested_by_extractor_and_setting():
    metrics = nested(summarize(table()))["scorer-classifier"]
    assert metrics["va-pi g=1.0"]["fid"] == 10.0 and metrics["va-pi g=1.0"]["seeds"] == 3
    assert metrics["base at T 0.9 g=1.0"]["fid"] == 10.0 and "base at T 0.9 g=1.5" not in metrics
    assert metrics["va-pi g=1.0"]["fid_low"] < 10.0 < metrics["va-pi g=1.0"]["fid_high"]


def test_a_setting_of_metrics_has_the_same_name_whether_its_guidance_was_read_as_a_whole_number():
    whole = table().assign(guidance_scale=1)
    assert "va-pi g=1.0" in nested(summarize(whole))["scorer-classifier"]


def test_an_extractor_is_blind_under_which_reconstructions_score_no_better_than_the_base():
    scores = pd.concat([table(), table().assign(extractor="efficientnet-lite0")])
    summary = summarize(scores)
    fid = summary.query("row == 'base' and guidance_scale == 1.0")["fid"].iloc[0]
    floors = {"efficientnet-lite0": 40.0, "scorer-classifier": 2.0}
    assert blind_extractors(summary, "base", 1.0, floors) == {"efficientnet-lite0": (40.0, fid)}
    assert set(blind_extractors(summary, "base", 1.5, floors | {"scorer-classifier": 20.0})) == set(floors)
    assert blind_extractors(summary, "base", 1.0, {}) == {}


# GenEval


TASKS = ["colors", "colors", "counting"]


def judged(row, seed, correct):
    return pd.DataFrame(
        {
            "variant": row,
            "row": row,
            "temperature": 1.0,
            "guidance_scale": 1.0,
            "seed": seed,
            "prompt": np.arange(3),
            "task": TASKS,
            "correct": correct,
            "images": 2,
        }
    )


DECISIONS = pd.concat(
    [
        judged("base", 4, [0, 1, 1]),
        judged("base", 5, [1, 1, 0]),
        judged(SUBJECT, 4, [2, 2, 2]),
        judged(SUBJECT, 5, [2, 2, 1]),
    ]
)


def test_overall_is_the_mean_of_the_tasks_of_every_set():
    overall = overall_scores(DECISIONS).set_index(["variant", "seed"])["overall"]
    assert overall["base", 4] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert overall[SUBJECT, 5] == pytest.approx((1 + 1 / 2) / 2)


def test_tasks_are_summarized_over_seeds_with_an_interval_over_prompts():
    tasks = summarize_tasks(DECISIONS).set_index(["row", "task"])
    assert tasks.loc[("base", "colors"), "mean"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert tasks.loc[("base", "overall"), "prompts"] == 3
    assert tasks.loc[SUBJECT, "mean"].to_dict() == {"colors": 1.0, "counting": 0.75, "overall": 0.875}
    assert (tasks["low"] <= tasks["mean"]).all() and (tasks["mean"] <= tasks["high"]).all()


def test_genevals_overall_score_is_judged_by_the_same_rule():
    def overall(seeds):
        sets = overall_scores(DECISIONS[DECISIONS["seed"].isin(seeds)])
        return compare(
            sets.assign(row=sets["variant"], extractor="geneval", reference="heldout"), [AGAINST_BASE], ("overall",)
        ).iloc[0]

    assert overall([4, 5])["mean"] == pytest.approx((0.625 + 0.5) / 2)
    assert overall([4, 5])["verdict"] == NO_DIFFERENCE
    assert overall([4])["verdict"] == NOT_TESTED  # over prompts alone it would be a difference
