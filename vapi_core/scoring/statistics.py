"""Uncertainty of scores: over seeds by Student's t, over the images of one set by the bootstrap.

With the few seeds of a results table take the t interval; the bootstrap of three values knows only three values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vapi_core.randomness import stream

CONFIDENCE = 0.95
POWER = 0.8
REPLICATES = 1000


def mean_and_standard_error(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean, and standard deviation (n - 1) over the root of n; the latter is NaN for a single value."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 1:
        return float(array[0]), float("nan")
    return float(array.mean()), float(array.std(ddof=1) / np.sqrt(array.size))


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over pairs, its standard error, t interval and two-sided p-value (for a mean of 0)."""

    mean: float
    standard_error: float
    low: float
    high: float
    p_value: float
    pairs: int


def paired_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE
) -> PairedDifference:
    """Student's paired t-test of a against b, e.g. aligned and base scores of the same seeds, in the same order.

    A single pair has no spread: all but its mean is NaN. Where all pairs differ by the same amount the interval is that
    amount, and the p-value 0 (1 if the amount is 0).
    """
    from scipy.stats import t

    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    assert differences.ndim == 1 and len(a) == len(b), "a and b are pairs"
    mean, error = mean_and_standard_error(differences)
    freedom = differences.size - 1
    if error == 0:
        return PairedDifference(mean, 0.0, mean, mean, float(mean == 0), differences.size)
    reach = error * float(t.ppf((1 + confidence) / 2, freedom))
    p_value = 2 * float(t.sf(abs(mean) / error, freedom))
    return PairedDifference(mean, error, mean - reach, mean + reach, p_value, differences.size)


def t_interval(values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's interval of the mean; NaN for a single value."""
    about = paired_difference(values, np.zeros(len(values)), confidence)
    return about.low, about.high


def smallest_difference(
    standard_error: float, pairs: int, confidence: float = CONFIDENCE, power: float = POWER
) -> float:
    """The smallest difference that a paired t-test with this standard error finds with this power; NaN for a pair."""
    return standard_error * _detectable(pairs, confidence, power) if pairs > 1 else float("nan")


@lru_cache
def _detectable(pairs: int, confidence: float, power: float) -> float:
    """The same in standard errors: where the power, by the noncentral t distribution, is reached."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    critical = float(t.ppf((1 + confidence) / 2, pairs - 1))
    most = 2.0
    while nct.sf(critical, pairs - 1, most * critical) < power:
        most *= 2
    return float(brentq(lambda shift: nct.sf(critical, pairs - 1, shift) - power, 0.0, most * critical))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values adjusted for their number (Holm 1979): those below a level are, together, wrong that rarely at most.

    Comparisons that could not be made (NaN) stay so and do not count.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def bootstrap_metric(
    metric: Callable[[np.ndarray], float], n_items: int, replicates: int = REPLICATES, seed: int = 0
) -> np.ndarray:
    """A metric of as many items drawn with replacement, float64 [replicates]: their spread is the metric's uncertainty.

    Args:
        metric: takes the indices of the drawn items, int64 [n_items], e.g. `lambda i: accuracy(logits[i], labels[i])`.
    """
    draws = (stream(seed, "bootstrap", r).integers(n_items, size=n_items) for r in range(replicates))
    return np.array([metric(indices) for indices in draws], dtype=np.float64)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE, seed: int = 0, replicates: int = REPLICATES
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of many values, e.g. of one value per image."""
    array = np.asarray(values, dtype=np.float64)
    means = bootstrap_metric(lambda indices: float(array[indices].mean()), array.size, replicates, seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
