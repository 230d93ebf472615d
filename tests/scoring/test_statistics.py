"""Uncertainty of scores."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from vapi_core.scoring.statistics import (
    bootstrap_interval,
    bootstrap_metric,
    holm,
    mean_and_standard_error,
    paired_difference,
    smallest_difference,
    t_interval,
)


def test_the_standard_error_is_the_spread_over_the_root_of_the_count():
    assert mean_and_standard_error([2.0, 4.0, 6.0]) == pytest.approx((4.0, 2.0 / math.sqrt(3)))


def test_a_single_seed_has_a_mean_but_no_standard_error():
    mean, error = mean_and_standard_error([3.5])
    assert mean == 3.5
    assert math.isnan(error)


def test_the_paired_difference_is_the_paired_t_test_of_scipy():
    aligned, base = np.array([10.1, 9.7, 10.4, 8.9]), np.array([14.0, 12.5, 13.1, 13.3])
    difference = paired_difference(aligned, base, confidence=0.9)
    expected = ttest_rel(aligned, base)
    interval = expected.confidence_interval(0.9)
    assert difference.p_value == pytest.approx(expected.pvalue)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert difference.mean == pytest.approx(-3.45)
    assert difference.pairs == 4


def test_pairing_finds_a_difference_that_the_spread_over_seeds_hides():
    base = np.array([10.0, 20.0, 30.0, 40.0])
    aligned = base - np.array([1.0, 1.1, 0.9, 1.0])
    assert paired_difference(aligned, base).high < 0
    assert paired_difference(aligned, base[::-1]).low < 0 < paired_difference(aligned, base[::-1]).high


def test_equal_differences_leave_no_doubt_and_no_difference_no_evidence():
    apart, same = paired_difference([1.0, 2.0], [3.0, 4.0]), paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (apart.low, apart.high, apart.p_value) == (-2.0, -2.0, 0.0)
    assert (same.mean, same.p_value) == (0.0, 1.0)


def test_one_pair_gives_a_mean_without_an_interval():
    difference = paired_difference([1.0], [3.0])
    assert difference.mean == -2.0
    assert math.isnan(difference.low)
    assert math.isnan(difference.p_value)


def test_the_bootstrap_spread_of_an_accuracy_is_the_binomial_one():
    correct = np.arange(400) < 300
    replicates = bootstrap_metric(lambda indices: correct[indices].mean(), len(correct), replicates=2000, seed=1)
    assert replicates.mean() == pytest.approx(0.75, abs=0.005)
    assert replicates.std() == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.1)


def test_the_bootstrap_interval_of_many_values_agrees_with_the_normal_one():
    values = np.random.default_rng(0).normal(5, 2, 500)
    mean, error = mean_and_standard_error(values)
    low, high = bootstrap_interval(values, 0.95, seed=3)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * error)


def test_the_bootstrap_repeats_for_a_seed_and_a_longer_one_begins_with_a_shorter():
    values = np.linspace(0, 1, 20)
    assert bootstrap_interval(values, seed=7) == bootstrap_interval(values, seed=7)
    assert bootstrap_interval(values, seed=7) != bootstrap_interval(values, seed=8)
    few, many = (bootstrap_metric(lambda i: values[i].mean(), 20, replicates, seed=7) for replicates in (5, 9))
    np.testing.assert_array_equal(few, many[:5])


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_never_turns_their_order():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_a_comparison_that_could_not_be_made_counts_for_nothing():
    adjusted = holm([0.02, math.nan, 0.03])
    assert adjusted[[0, 2]].tolist() == pytest.approx([0.04, 0.04]) and math.isnan(adjusted[1])


def test_the_interval_of_a_mean_is_students():
    values = np.array([3.0, 4.5, 3.7, 5.1])
    interval = ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert t_interval(values, 0.9) == pytest.approx((interval.low, interval.high))
    assert all(math.isnan(end) for end in t_interval([3.0]))
    assert t_interval([2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize(("pairs", "confidence"), [(3, 0.95), (3, 1 - 0.05 / 6), (8, 0.95), (8, 1 - 0.05 / 6)])
def test_the_smallest_difference_is_found_in_80_of_100_repetitions(pairs, confidence):
    error = 2.0 / math.sqrt(pairs)  # of differences with a standard deviation of 2
    smallest = smallest_difference(error, pairs, confidence)
    differences = np.random.default_rng(0).normal(smallest, 2.0, (20_000, pairs))
    found = ttest_1samp(differences, 0.0, axis=1).pvalue < 1 - confidence
    assert found.mean() == pytest.approx(0.8, abs=0.015)


def test_the_smallest_difference_falls_with_the_seeds_and_there_is_none_for_a_pair():
    assert smallest_difference(1.0, 3) > smallest_difference(1.0, 8) > smallest_difference(1.0, 100)
    assert smallest_difference(2.0, 8) == pytest.approx(2 * smallest_difference(1.0, 8))
    assert math.isnan(smallest_difference(float("nan"), 1))
