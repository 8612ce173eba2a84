"""How sure a score is, and whether two models really differ: bootstrap intervals and paired tests over a task's items.

Items (queries, pairs, texts) are drawn with replacement; an interval is between percentiles of the metric over the
draws (Efron 1979). Two models are compared on the same draws. The p-value of a metric that is a mean over items is
that of a paired randomisation test (scipy: under the null hypothesis the two models' scores of an item may be swapped;
Smucker et al. 2007); of any other metric it is twice the share of draws in which the difference has the other sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from operators.evaluation.outcome import Outcome

_DRAWS_AT_ONCE = 1 << 22  # numbers of items: 32 MB


class Resampling(BaseModel):
    """How intervals and tests are taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    draws: int = Field(default=1000, ge=100, description="bootstrap draws, and swaps of the randomisation test")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="of the intervals")
    seed: int = Field(default=0, ge=0, description="of the draws")


@dataclass(frozen=True, slots=True)
class Bounds:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the second model is on a metric, with its interval and the chance of such a gap by luck."""

    value: float
    low: float
    high: float
    p_value: float


def intervals(outcome: Outcome, resampling: Resampling) -> dict[str, Bounds]:
    """The interval of every metric that the outcome can take again of drawn items."""
    drawn = _draws(outcome, resampling)
    return {name: Bounds(*_percentiles(values, resampling)) for name, values in drawn.items() if len(values)}


def compare(first: Outcome, second: Outcome, resampling: Resampling) -> dict[str, Difference]:
    """Second minus first, of every metric that both have; their items must be the same ones in the same order."""
    if first.num_items != second.num_items:
        raise ValueError(f"only scores of the same items compare: {first.num_items} and {second.num_items}")
    one, other = _draws(first, resampling), _draws(second, resampling)
    found = {}
    for name in one.keys() & other.keys():
        if len(one[name]) != len(other[name]) or not len(one[name]):
            continue  # a draw on which one of the two has no score
        gap = other[name] - one[name]
        if name in first.by_item:
            p_value = _swap_p_value(first.by_item[name], second.by_item[name], resampling)
        else:
            # The add-one makes the least p-value 2 / (draws + 1) and never 0 (Davison and Hinkley 1997, 4.2.3)
            p_value = min(1.0, 2 * (1 + min((gap <= 0).sum(), (gap >= 0).sum())) / (1 + len(gap)))
        value = second.metrics[name] - first.metrics[name]
        found[name] = Difference(value, *_percentiles(gap, resampling), float(p_value))
    return {name: found[name] for name in first.metrics if name in found}


def _draws(outcome: Outcome, resampling: Resampling) -> dict[str, NDArray[np.float64]]:
    """Every metric of every draw; the same seed and number of items give the same draws."""
    rng = np.random.default_rng(resampling.seed)
    step = max(1, _DRAWS_AT_ONCE // outcome.num_items)
    names = list(outcome.by_item)
    values_NM = np.stack(list(outcome.by_item.values()), axis=1) if names else None
    means, others = [], []
    for start in range(0, resampling.draws, step):
        num_draws = min(step, resampling.draws - start)
        for draw in rng.integers(0, outcome.num_items, (num_draws, outcome.num_items)):
            if values_NM is not None:
                means.append(values_NM[draw].mean(axis=0))
            if outcome.of_draw is not None:
                others.append(outcome.of_draw(draw))
    found = dict(zip(names, np.stack(means, axis=1), strict=True)) if names else {}
    return found | _by_name(others)


def _by_name(scores: list[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    names = dict.fromkeys(name for one in scores for name in one)
    return {name: np.array([one[name] for one in scores if name in one]) for name in names}


def _percentiles(values: NDArray[np.float64], resampling: Resampling) -> tuple[float, float]:
    tail = 50 * (1 - resampling.confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _swap_p_value(first_N: NDArray[np.float64], second_N: NDArray[np.float64], resampling: Resampling) -> float:
    from scipy.stats import permutation_test

    gap_N = second_N - first_N
    if not gap_N.any():
        return 1.0
    tested = permutation_test(
        (gap_N,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        n_resamples=resampling.draws,
        batch=max(1, _DRAWS_AT_ONCE // len(gap_N)),
        vectorized=True,
        rng=np.random.default_rng(resampling.seed),
    )
    return float(tested.pvalue)
