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
_NORMAL_QUANTILE = 1.96
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
    units = [_unit_totals(sample) for sample in samples]
    totals_DV = np.array([totals for totals, _, _ in units])
    variances_DV = np.array([variances for _, variances, _ in units])
    blocks_D = np.array([blocks for _, _, blocks in units], dtype=np.float64)

    certain_D = draw.certain_D
    rest_D = ~certain_D
    num_rest = int(rest_D.sum())
    density_DV = totals_DV / sizes_D[:, None]
    value_V = totals_DV[certain_D].sum(axis=0)
    parts = [(variances_DV[certain_D].sum(axis=0), _freedom(blocks_D[certain_D]))]
    if num_rest:
        value_V = value_V + draw.rest_bytes * density_DV[rest_D].mean(axis=0)
        # One unit alone says nothing of the others: the certain ones tell how much units differ, else only its blocks.
        between_DV = density_DV[rest_D] if num_rest > 1 else density_DV
        within_V = (variances_DV[rest_D] / sizes_D[rest_D, None] ** 2).mean(axis=0)
        if len(between_DV) > 1:
            spread_V = between_DV.var(axis=0, ddof=1)
            factor = draw.rest_bytes**2 / num_rest
            parts.append((factor * draw.correction * spread_V, float(len(between_DV) - 1)))
            parts.append((factor * (1 - draw.correction) * within_V, _freedom(blocks_D[rest_D])))
        else:
            parts.append((draw.rest_bytes**2 * within_V, _freedom(blocks_D)))

    share_D = np.array([sample.share_read for sample in samples])
    unit_weights_D = np.ones(len(samples))
    unit_weights_D[rest_D] = draw.rest_bytes / (max(num_rest, 1) * sizes_D[rest_D])
    return Expansion(_intervals(value_V, parts, samples, is_complete(samples, draw)), unit_weights_D / share_D)


def is_complete(samples: Sequence[UnitSample], draw: UnitDraw) -> bool:
    """Whether the sample is the whole source."""
    return draw.rest_bytes == 0 and all(sample.share_read == 1.0 for sample in samples)


def _freedom(blocks_D: Floats) -> float:
    """Degrees of freedom of variances between the blocks of some units."""
    return max(float((blocks_D - 1).sum()), 1.0)


def _unit_totals(sample: UnitSample) -> tuple[Floats, Floats, int]:
    """A unit's estimated totals and their variances, by variable, and the number of blocks that these come from."""
    rows_RV = _rows(sample)
    num_rows, share = len(rows_RV), sample.share_read
    if share == 1.0 or num_rows == 0:
        return rows_RV.sum(axis=0), np.zeros(len(VARIABLES)), num_rows
    sizes_R = sample.text_chars_by_row_R + float(ROW_OVERHEAD_CHARS)
    if num_rows == 1:
        return rows_RV[0] / share, (rows_RV[0] / share) ** 2, 1  # nothing is known of its spread: an error of 100 %
    num_blocks = min(num_rows, MAX_BLOCKS)
    starts_K = np.arange(num_blocks) * num_rows // num_blocks
    y_KV = np.add.reduceat(rows_RV, starts_K, axis=0)
    x_K = np.add.reduceat(sizes_R, starts_K)
    mean_x, mean_V = x_K.mean(), y_KV.mean(axis=0)
    theta = (1 - share) / num_blocks
    covariance_V = ((x_K - mean_x)[:, None] * (y_KV - mean_V)).sum(axis=0) / (num_blocks - 1)
    scale_V = mean_x * np.where(mean_V > 0, mean_V, 1.0)
    beale_V = (1 + theta * covariance_V / scale_V) / (1 + theta * x_K.var(ddof=1) / mean_x**2)
    residuals_KV = y_KV - x_K[:, None] * (mean_V / mean_x)
    variance_V = (1 - share) * num_blocks / (num_blocks - 1) * (residuals_KV**2).sum(axis=0) / share**2
    return rows_RV.sum(axis=0) / share * beale_V, variance_V, num_blocks


def _rows(sample: UnitSample) -> Floats:
    """rows_RV: what each sampled row adds to each variable."""
    chunks_R = sample.chunks_by_row_R
    ends_R = np.cumsum(chunks_R)
    tokens_up_to = np.concatenate([[0], np.cumsum(sample.tokens_by_chunk_C)])
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
        if name == "rejected" and not complete:
            interval = _share_interval(float(value_V[i]), float(variance_V[i]), float(value_V[0]), float(seen_V[0]))
        else:
            interval = _positive_interval(float(value_V[i]), float(variance_V[i]), freedom)
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


def _share_interval(value: float, variance: float, whole: float, seen: float) -> Interval:
    """Wilson's interval of a share, with the sample size that would give this variance; it has width at 0 as well."""
    if whole <= 0:
        return Interval.exactly(value)
    share = min(value / whole, 1.0)
    binomial = share * (1 - share) * whole**2
    size = max(binomial / variance, 1.0) if binomial > 0 and variance > 0 else max(seen, 1.0)
    z2 = _NORMAL_QUANTILE**2
    middle = (share + z2 / (2 * size)) / (1 + z2 / size)
    half = _NORMAL_QUANTILE / (1 + z2 / size) * math.sqrt(share * (1 - share) / size + z2 / (4 * size**2))
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return Interval(value, min(low * whole, value), max(high * whole, value))


def _degrees_of_freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Satterthwaite's: of a sum of variances that have their own."""
    total = sum(variance for variance, _ in parts)
    return total**2 / sum(variance**2 / freedom for variance, freedom in parts) if total > 0 else math.inf


def student_quantile(freedom: float) -> float:
    """Student's t at 97.5 %, from a table, to 0.5 %."""
    inverse = [1 / df for df in reversed(_STUDENT_FREEDOM)]
    return float(np.interp(1 / max(freedom, 1.0), inverse, _STUDENT_T[::-1]))
