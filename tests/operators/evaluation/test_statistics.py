"""Intervals and tests against scipy and against what is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from operators.evaluation.outcome import Outcome
from operators.evaluation.pairs import score_sts
from operators.evaluation.statistics import Resampling, compare, intervals

MANY = Resampling(draws=3000)


def means(values: np.ndarray) -> Outcome:  # type: ignore[type-arg]
    """An outcome that is the mean of some values."""
    return Outcome({"m": float(values.mean())}, "queries", len(values), {"m": values})


def test_intervals_of_a_mean_are_scipys() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, 300)
    found = intervals(means(values), MANY)["m"]
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=3000, method="percentile", rng=1)
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=3e-3)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=3e-3)


def test_intervals_of_a_correlation_are_scipys() -> None:
    rng = np.random.default_rng(0)
    gold = rng.normal(size=150)
    cosine = gold + rng.normal(size=150)
    found = intervals(score_sts(cosine, gold.tolist()), Resampling(draws=500))["cosine_pearson"]
    theirs = scipy.stats.bootstrap(
        (cosine, gold),
        lambda x, y: scipy.stats.pearsonr(x, y)[0],
        paired=True,
        vectorized=False,
        n_resamples=500,
        method="percentile",
        rng=1,
    )
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.03)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.03)


def test_a_real_difference_is_told_from_luck() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(size=200)
    better, same = np.clip(first + 0.05 + 0.05 * rng.normal(size=200), 0, 1), rng.permutation(first)
    gap = compare(means(first), means(better), MANY)["m"]
    assert gap.value == pytest.approx((better - first).mean())
    assert gap.low > 0
    assert gap.p_value < 0.01
    assert compare(means(first), means(same), MANY)["m"].p_value > 0.5
    assert compare(means(first), means(first), MANY)["m"].p_value == 1


def test_p_values_of_no_difference_are_uniform() -> None:
    """Under the null hypothesis 5 % of the tests are below 0.05, whatever the metric."""
    rng = np.random.default_rng(0)
    quick = Resampling(draws=100)
    below = {"m": 0, "cosine_spearman": 0}
    for _ in range(30):
        gold = rng.normal(size=60)
        pair = [score_sts(gold + rng.normal(size=60), gold.tolist()) for _ in range(2)]
        below["cosine_spearman"] += compare(*pair, quick)["cosine_spearman"].p_value < 0.05
        below["m"] += compare(means(rng.normal(size=60)), means(rng.normal(size=60)), quick)["m"].p_value < 0.05
    assert below["m"] <= 6, "of 30 tests 1.5 are expected, more than 6 in one of 1,700 tries"
    assert below["cosine_spearman"] <= 6


def test_the_paired_test_is_scipys_for_few_items() -> None:
    """With so few items every swap is tried, so that the p-value is exact."""
    first, second = np.array([0.1, 0.5, 0.3, 0.2, 0.9]), np.array([0.2, 0.7, 0.3, 0.5, 1.0])
    gap = (second - first)[(second - first) != 0]
    signs = np.array(np.meshgrid(*[[1, -1]] * len(gap))).reshape(len(gap), -1).T
    exact = np.mean(np.abs(signs @ gap) >= abs(gap.sum()) - 1e-12)
    assert compare(means(first), means(second), MANY)["m"].p_value == pytest.approx(exact)


def test_scores_of_other_items_do_not_compare() -> None:
    with pytest.raises(ValueError, match="same items"):
        compare(means(np.ones(3)), means(np.ones(4)), MANY)
