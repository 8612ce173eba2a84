"""The intervals hold the truth as often as they say, and are exact where nothing was left to chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from operators.planning.expansion import VARIABLES, Interval, expand, student_quantile
from operators.planning.sampling import UnitDraw, UnitSample, choose_units
from tests.operators.planning.corpora import expand_units, make_units, true_totals


def coverage(populations: int, draws: int, num_units: int, drawn: int, size_spread: float) -> dict[str, float]:
    """The share of samples, by variable, whose interval holds the true total."""
    inside = dict.fromkeys(VARIABLES, 0)
    for population in range(populations):
        rows = 300 if num_units > 100 else 300 + 6000 // num_units
        units = make_units(population, num_units, rows, size_spread)
        truth = true_totals(units)
        for seed in range(draws):
            totals = expand_units(units, drawn, 2000, seed).totals
            for name in VARIABLES:
                inside[name] += totals[name].low <= truth[name] <= totals[name].high
    return {name: hits / (populations * draws) for name, hits in inside.items()}


@pytest.mark.parametrize(
    ("populations", "draws", "num_units", "drawn", "size_spread"),
    [(10, 20, 300, 32, 1.0), (20, 10, 300, 32, 2.0), (10, 20, 300, 8, 0.5), (100, 2, 20, 32, 1.0), (100, 2, 1, 1, 0.0)],
    ids=["some units", "a few huge units", "few units drawn", "a part of every unit", "a part of one unit"],
)
def test_interval_in_200_simulations_holds_truth_in_at_least_90_percent(
    populations: int, draws: int, num_units: int, drawn: int, size_spread: float
) -> None:
    inside = coverage(populations, draws, num_units, drawn, size_spread)
    assert min(inside["documents"], inside["tokens"], inside["chunks"]) >= 0.9
    # Rejected rows come in clusters; what a sample has not met it cannot count.
    assert inside["rejected"] >= 0.85


def test_value_averaged_over_draws_is_the_truth_within_two_percent() -> None:
    units = make_units(seed=3, num_units=200, size_spread=1.5)
    truth = true_totals(units)
    totals = [expand_units(units, 24, 1000, seed).totals for seed in range(100)]
    for name in ("documents", "tokens", "chunks"):
        assert np.mean([one[name].value for one in totals]) == pytest.approx(truth[name], rel=0.02)


def test_interval_of_the_whole_source_is_exact() -> None:
    units = make_units(seed=1, num_units=12, rows=50)
    totals = expand_units(units, num_drawn=12, sample_rows=10**9, seed=0).totals
    assert totals == {name: Interval.exactly(float(value)) for name, value in true_totals(units).items()}


def test_interval_with_more_units_is_narrower() -> None:
    units = make_units(seed=2, num_units=400)
    widths = [
        np.mean([expand_units(units, drawn, 40 * drawn, seed).totals["tokens"].error for seed in range(20)])
        for drawn in (4, 16, 64)
    ]
    assert widths[0] > 1.5 * widths[1] > 2 * widths[2]


def test_interval_of_some_whole_units_keeps_the_spread_between_units() -> None:
    units = make_units(seed=5, num_units=50)
    totals = expand_units(units, num_drawn=10, sample_rows=10**9, seed=0).totals
    assert all(totals[name].high > totals[name].value for name in VARIABLES)


def test_interval_of_rejected_rows_reaches_above_zero_when_none_was_seen() -> None:
    units = make_units(seed=1, num_units=100, rejected=0.0)
    rejected = expand_units(units, 20, 1000, seed=0).totals["rejected"]
    assert rejected.value == rejected.low == 0
    assert 0 < rejected.high < 0.01 * true_totals(units)["documents"]


def test_interval_never_falls_below_what_was_seen() -> None:
    rng = np.random.default_rng(0)
    seen = UnitSample(1000, 950, np.ones(9, np.int64), rng.integers(1, 200, 9), rng.integers(5, 200, 9))
    totals = expand([seen], choose_units(np.array([1000]), 1, 0)).totals
    assert totals["documents"].low >= 9
    assert totals["tokens"].low >= seen.tokens_by_chunk_C.sum()


def test_one_row_of_one_unit_gives_an_error_above_100_percent() -> None:
    one = UnitSample(10_000, 100, np.array([1]), np.array([90]), np.array([30]))
    tokens = expand([one], choose_units(np.array([10_000]), 1, 0)).totals["tokens"]
    assert tokens.value == pytest.approx(3000)
    assert tokens.error > 1


def test_unit_without_rows_counts_as_nothing() -> None:
    empty = UnitSample(500, 500, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    full = UnitSample(500, 500, np.array([2, 0]), np.array([100, 0]), np.array([7, 8]))
    totals = expand([empty, full], choose_units(np.array([500, 500]), 2, 0)).totals
    assert {name: totals[name].value for name in VARIABLES} == {
        "documents": 2,
        "tokens": 15,
        "chunks": 2,
        "rejected": 1,
    }


def test_total_of_equal_sized_units_is_the_textbook_mean_and_variance() -> None:
    tokens = [10, 14, 12, 20]
    samples = [UnitSample(100, 100, np.array([1]), np.array([1]), np.array([t])) for t in tokens]
    draw = UnitDraw(np.arange(4), np.zeros(4, np.bool_), num_units=40, num_bytes=4000, rest_bytes=4000, correction=0.9)
    interval = expand(samples, draw).totals["tokens"]
    # Cochran, chapter 2: N * mean, and N * sqrt((1 - f) / n) * s
    deviation = 40 * math.sqrt(0.9 / 4) * np.std(tokens, ddof=1)
    assert interval.value == 40 * 14
    assert math.log(interval.high / interval.value) == pytest.approx(3.182 * deviation / interval.value)


def test_weights_of_sampled_rows_add_up_to_the_documents() -> None:
    units = make_units(seed=8, num_units=100, size_spread=0.2)
    draw = choose_units(np.array([unit.num_bytes for unit in units]), 20, 0)
    samples = [units[i].sample(50) for i in draw.indices_D]
    expansion = expand(samples, draw)
    rows = np.array([len(sample.chunks_by_row_R) for sample in samples])
    assert expansion.weights_D @ rows == pytest.approx(expansion.totals["documents"].value, rel=0.05)


def test_widened_interval_adds_errors_in_quadrature() -> None:
    wide = Interval(100.0, 100 / 1.3, 130.0).widened(0.4)
    assert math.log(wide.high / 100) == pytest.approx(math.hypot(math.log(1.3), math.log(1.4)))
    assert math.log(100 / wide.low) == pytest.approx(math.hypot(math.log(1.3), math.log(1.4)))
    assert Interval.exactly(0.0).widened(0.4) == Interval.exactly(0.0)


@pytest.mark.parametrize("freedom", [1.0, 2.0, 3.5, 4.0, 9.0, 17.0, 45.0, 1000.0, math.inf])
def test_student_quantile_is_that_of_scipy(freedom: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    exact = stats.norm.ppf(0.975) if math.isinf(freedom) else stats.t.ppf(0.975, freedom)
    assert student_quantile(freedom) == pytest.approx(exact, rel=0.01)
