"""From sampled units to totals of the whole source, with a 95 % interval that counts both stages of the sampling.

Within a unit, what the first rows held is expanded by bytes with Beale's ratio estimator (a plain ratio of few rows of
very different length is biased upwards by some per cent, and in every unit alike). Between units, totals are bytes
times the mean density of the drawn units. The variance is the two-stage one:

    rest_bytes^2 * (c * s^2 / n + (1 - c) * mean(w) / n)  +  sum over certain units of their own variance

with s^2 the variance of densities between units, w that within a unit, c the finite population correction. If every
unit was read to its end it is zero; if every unit was read in part, only what lies within them counts. The variance
within a unit is taken between blocks of consecutive rows, because neighbours in a file are alike. What cannot be seen:
a file whose later part differs from its beginning, where it is the only one.
Textbook: Cochran, Sampling Techniques, 3rd ed., chapters 6 (ratios), 9A (probability by size), 10-11 (two stages).

    D drawn units, R rows of a unit, K blocks of rows, V variables
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from operators.planning.sampling import Floats, UnitDraw, UnitSample

VARIABLES = ("documents", "tokens", "chunks", "rejected")
MAX_BLOCKS = 20
# The keys, quotes and id of a JSON line, about. It only says how a unit's bytes spread over its rows, so that one
# without text has some; the unit's bytes themselves are as listed.
ROW_OVERHEAD_CHARS = 64
# Student's t at 97.5 %, by degrees of freedom.
_STUDENT_FREEDOM = (1, 2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 30, 60, 120, math.inf)
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.228, 2.131, 2.086, 2.042, 2.0, 1.98, 1.96)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the 95 % interval around it; all three are equal where nothing was left to chance."""

    value: float
    low: float
    high: float

    @staticmethod
    def exactly(value: float) -> Interval:
        """An interval of no width."""
        return Interval(value, value, value)

    def times(self, factor: float) -> Interval:
        """The interval of a quantity that is `factor` (>= 0) of this one."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)

    def widened(self, error: float) -> Interval:
        """The interval of this quantity times one that is 1 with a 95 % error of its own, the two independent."""
        if self.value <= 0 or self.low <= 0:
            return self
        own = math.log1p(error)
        down = math.hypot(math.log(self.value / self.low), own)
        up = math.hypot(math.log(self.high / self.value), own)
        return Interval(self.value, self.value * math.exp(-down), self.value * math.exp(up))

    @property
    def error(self) -> float:
        """The larger distance to a bound, as a share of the value; 0 for exact and for zero."""
        return max(self.high - self.value, self.value - self.low) / self.value if self.value else 0.0


@dataclass(frozen=True, slots=True)
class Expansion:
    """Totals of the source by variable; `weights_D`: how many rows of the source a sampled row of a unit stands for."""

    totals: dict[str, Interval]
    weights_D: Floats


def expand(samples: Sequence[UnitSample], draw: UnitDraw) -> Expansion:
    """Estimate the source's totals from the samples, which are in the order of `draw.indices_D`."""
    assert len(samples) == len(draw.indices_D) > 0, "one sample for each drawn unit"
    sizes_D = np.array([sample.size_bytes for sample in samples], dtype=np.float64)
    share_D = np.array([sample.share_read for sample in samples])
    units = [_unit_totals(sample) for sample in samples]
    density_DV = np.array([unit.totals_V for unit in units]) / sizes_D[:, None]
    spread_DV = np.array([unit.spread_V for unit in units]) / sizes_D[:, None] ** 2
    freedom_D = np.array([max(unit.num_blocks - 1, 1) for unit in units], dtype=np.float64)

    certain_D, rest_D = draw.certain_D, ~draw.certain_D
    within_DV = (1 - share_D)[:, None] * spread_DV  # what was read of a unit is known
    value_V = (density_DV * sizes_D[:, None])[certain_D].sum(axis=0)
    parts = [((within_DV * sizes_D[:, None] ** 2)[certain_D].sum(axis=0), freedom_D[certain_D].sum())]
    weights_D = 1 / share_D
    if rest_D.any():
        num_rest = int(rest_D.sum())
        value_V = value_V + draw.rest_bytes * density_DV[rest_D].mean(axis=0)
        weights_D[rest_D] *= draw.rest_bytes / (num_rest * sizes_D[rest_D])
        factor = draw.rest_bytes**2 / num_rest
        # One unit alone does not tell how much units differ. The certain ones do; without any, its rows have to.
        differing_DV = density_DV[rest_D] if num_rest > 1 else density_DV
        if len(differing_DV) > 1:
            between_V = draw.correction * differing_DV.var(axis=0, ddof=1)
            parts.append((factor * between_V, float(len(differing_DV) - 1)))
            within_V = (1 - draw.correction) * within_DV[rest_D].mean(axis=0)
            parts.append((factor * within_V, freedom_D[rest_D].sum()))
        else:
            parts.append((factor * spread_DV[0], freedom_D[0]))
    return Expansion(_intervals(value_V, parts, samples, is_complete(samples, draw)), weights_D)


def is_complete(samples: Sequence[UnitSample], draw: UnitDraw) -> bool:
    """Whether the sample is the whole source."""
    return draw.rest_bytes == 0 and all(sample.share_read == 1.0 for sample in samples)


@dataclass(frozen=True, slots=True, eq=False)
class _UnitTotals:
    """A unit's estimated totals by variable, and the variance that they have as a sample of endless rows like these."""

    totals_V: Floats
    spread_V: Floats
    num_blocks: int


def _unit_totals(sample: UnitSample) -> _UnitTotals:
    rows_RV = _rows(sample)
    num_rows, share = len(rows_RV), sample.share_read
    totals_V = rows_RV.sum(axis=0) / share
    if num_rows < 2:
        return _UnitTotals(totals_V, totals_V**2, num_rows)  # nothing is known of the spread: an error of 100 %
    num_blocks = min(num_rows, MAX_BLOCKS)
    starts_K = np.arange(num_blocks) * num_rows // num_blocks
    y_KV = np.add.reduceat(rows_RV, starts_K, axis=0)
    x_K = np.add.reduceat(sample.text_chars_by_row_R + float(ROW_OVERHEAD_CHARS), starts_K)
    mean_x, mean_V = x_K.mean(), y_KV.mean(axis=0)
    theta = (1 - share) / num_blocks
    covariance_V = ((x_K - mean_x)[:, None] * (y_KV - mean_V)).sum(axis=0) / (num_blocks - 1)
    scale_V = mean_x * np.where(mean_V > 0, mean_V, 1.0)
    beale_V = (1 + theta * covariance_V / scale_V) / (1 + theta * x_K.var(ddof=1) / mean_x**2)
    # Divided by one minus its leverage a residual is what leaving its block out would change: the jackknife, which does
    # not understate the variance of a ratio of few, skewed blocks as the plain residuals do.
    residuals_KV = (y_KV - x_K[:, None] * (mean_V / mean_x)) / (1 - x_K / x_K.sum())[:, None]
    return _UnitTotals(totals_V * beale_V, (residuals_KV**2).sum(axis=0) / share**2, num_blocks)


def _rows(sample: UnitSample) -> Floats:
    """rows_RV: what each sampled row adds to each variable."""
    chunks_R = sample.chunks_by_row_R
    ends_R = np.cumsum(chunks_R)
    tokens_up_to = np.concatenate([[0], np.cumsum(sample.read_C)])
    tokens_R = tokens_up_to[ends_R] - tokens_up_to[ends_R - chunks_R]
    return np.stack([np.ones(len(chunks_R)), tokens_R, chunks_R, chunks_R == 0], axis=1).astype(np.float64)


def _intervals(
    value_V: Floats, parts: Sequence[tuple[Floats, float]], samples: Sequence[UnitSample], complete: bool
) -> dict[str, Interval]:
    seen_V = np.sum([_rows(sample).sum(axis=0) for sample in samples], axis=0)
    variance_V = np.sum([variance for variance, _ in parts], axis=0)
    intervals = {}
    for i, name in enumerate(VARIABLES):
        freedom = _degrees_of_freedom([(float(variance[i]), df) for variance, df in parts])
        value, spread = float(value_V[i]), float(variance_V[i])
        if name == "rejected" and not complete:
            interval = _share_interval(value, spread, freedom, whole=float(value_V[0]), seen=float(seen_V[0]))
        else:
            interval = _positive_interval(value, spread, freedom)
        # What was seen is there for certain.
        seen = float(seen_V[i])
        intervals[name] = Interval(max(interval.value, seen), max(interval.low, seen), max(interval.high, seen))
    return intervals


def _positive_interval(value: float, variance: float, freedom: float) -> Interval:
    """On the logarithm's scale, where a total of skewed parts is closer to normal, and which has no negative bound."""
    if value <= 0 or variance <= 0:
        return Interval.exactly(value)
    ratio = math.exp(student_quantile(freedom) * math.sqrt(variance) / value)
    return Interval(value, value / ratio, value * ratio)


def _share_interval(value: float, variance: float, freedom: float, whole: float, seen: float) -> Interval:
    """Wilson's interval of a share, with the sample size that would give this variance; it has width at 0 as well."""
    if whole <= 0:
        return Interval.exactly(value)
    share = min(value / whole, 1.0)
    binomial = share * (1 - share) * whole**2
    size = max(binomial / variance, 1.0) if binomial > 0 and variance > 0 else max(seen, 1.0)
    t = student_quantile(freedom)
    middle = (share + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t / (1 + t**2 / size) * math.sqrt(share * (1 - share) / size + t**2 / (4 * size**2))
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return Interval(value, min(low * whole, value), max(high * whole, value))


def _degrees_of_freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Satterthwaite's: of a sum of variances that have their own."""
    total = sum(variance for variance, _ in parts)
    return total**2 / sum(variance**2 / freedom for variance, freedom in parts if variance) if total > 0 else math.inf


def student_quantile(freedom: float) -> float:
    """Student's t at 97.5 %, interpolated in a table; to 1 % from 3 degrees of freedom on."""
    inverse = [1 / df for df in reversed(_STUDENT_FREEDOM)]
    return float(np.interp(1 / max(freedom, 1.0), inverse, _STUDENT_T[::-1]))
