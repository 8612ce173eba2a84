"""The plots of a training's report, over the steps that were done.

A long run is drawn as the means of some hundred bins with their range behind them, so that a report stays small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from operators.report.figures import count
from operators.report.plots import BLUE, INK, RED, SERIES, label, svg
from operators.training.record.curve import Curve, StepMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BINS = 240
_MOST_LINES = len(SERIES)
_SMOOTHED_SHARE = 0.02  # of a curve's steps stand in the memory of its moving average


@dataclass(frozen=True, slots=True)
class Binned:
    """Values over steps, in at most 240 bins of equally many steps."""

    steps: NDArray[np.float64]  # done in the middle of each bin
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def binned(steps: Sequence[int], values: Sequence[float]) -> Binned:
    """Values at steps as bins; what is not finite is left out."""
    at, found = np.array(steps, np.float64), np.array(values, np.float64)
    at, found = at[np.isfinite(found)], found[np.isfinite(found)]
    num_bins = min(_MOST_BINS, len(found))
    parts = [part for part in np.array_split(found, num_bins) if len(part)] if num_bins else []
    places = [part for part in np.array_split(at, num_bins) if len(part)] if num_bins else []
    return Binned(
        np.array([part.mean() for part in places]),
        np.array([part.mean() for part in parts]),
        np.array([part.min() for part in parts]),
        np.array([part.max() for part in parts]),
    )


def smoothed(values: Sequence[float]) -> list[float]:
    """The exponential moving average over about a fiftieth of the values, without the pull of its start towards 0.

    Corrected as Adam's moments are (Kingma and Ba 2014, arXiv 1412.6980); a value that is not finite is passed over.
    """
    decay = 1 - 1 / max(2.0, _SMOOTHED_SHARE * len(values))
    total = weight = 0.0
    found = []
    for value in values:
        if math.isfinite(value):
            total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        found.append(total / weight if weight else math.nan)
    return found


def loss_svg(curve: Curve) -> str:
    """The loss of each set, as it was and smoothed."""
    names = list(dict.fromkeys(step.set for step in curve.steps))

    def draw(axes: Axes) -> None:
        for name, color in zip(names[:_MOST_LINES], SERIES, strict=False):
            own = [step for step in curve.steps if step.set == name]
            done, losses = _done(own), [step.loss for step in own]
            _draw_bins(axes, binned(done, losses), color, faint=True)
            line = binned(done, smoothed(losses))
            axes.plot(line.steps, line.mean, color=color, linewidth=1.7, label=label(name))
        _finish(axes)
        if names:
            axes.legend(loc="upper right", ncols=min(3, len(names)))

    return svg("loss", draw)


def learning_rate_svg(curve: Curve) -> str:
    """The learning rate of each step."""

    def draw(axes: Axes) -> None:
        line = binned(_done(curve.steps), [step.learning_rate for step in curve.steps])
        axes.plot(line.steps, line.mean, color=BLUE, linewidth=1.7)
        axes.set_ylim(bottom=0)
        _finish(axes)
        axes.yaxis.set_major_formatter("{x:.1e}")

    return svg("learning rate", draw)


def gradient_norm_svg(curve: Curve, most: float | None) -> str:
    """The length of each step's gradient, and the length to which it was clipped."""

    def draw(axes: Axes) -> None:
        norms = [step.gradient_norm for step in curve.steps]
        _draw_bins(axes, binned(_done(curve.steps), norms), BLUE)
        if most is not None:
            axes.axhline(most, color=RED, linewidth=1.2, linestyle="--", label=f"clipped to {most:g}")
            axes.legend(loc="upper right")
        axes.set_ylim(bottom=0)
        _finish(axes)

    return svg("gradient norm", draw)


def speed_svg(curve: Curve, mean: float) -> str:
    """Tokens a second of each step, and of all."""

    def draw(axes: Axes) -> None:
        speeds = binned(_done(curve.steps), [step.tokens_per_second for step in curve.steps])
        _draw_bins(axes, speeds, BLUE)
        axes.axhline(mean, color=INK, linewidth=1, linestyle=(0, (1, 2)), label=f"mean {count(mean)}")
        axes.set_ylim(0, 1.25 * max(float(speeds.high.max()) if len(speeds.high) else 0.0, mean, 1e-9))
        axes.set_xlabel("steps")
        axes.legend(loc="upper right")

    return svg("tokens per second", draw)


def evaluations_svg(curve: Curve, kept_step: int) -> str:
    """The first scores of every evaluation over the steps; a ring marks the main score of the weights kept."""
    names = list(dict.fromkeys(name for one in curve.evaluations for name in one.scores))[:_MOST_LINES]

    def draw(axes: Axes) -> None:
        for name, color in zip(names, SERIES, strict=False):
            points = [(one.step, one.scores[name]) for one in curve.evaluations if name in one.scores]
            steps, scores = zip(*points, strict=True)
            axes.plot(steps, scores, "o-", color=color, markersize=3.5, linewidth=1.4, label=label(name))
        kept = next((one for one in curve.evaluations if one.step == kept_step), None)
        if kept is not None:
            axes.scatter(kept.step, kept.main, s=90, facecolors="none", edgecolors=RED, linewidths=1.8, label="kept")
        _finish(axes)
        axes.legend(loc="best", ncols=2)

    return svg("evaluations", draw)


def _done(steps: Sequence[StepMetrics]) -> list[int]:
    return [step.step + 1 for step in steps]


def _draw_bins(axes: Axes, bins: Binned, color: str, faint: bool = False) -> None:
    axes.fill_between(bins.steps, bins.low, bins.high, color=color, alpha=0.12, linewidth=0)
    axes.plot(bins.steps, bins.mean, color=color, linewidth=0.8 if faint else 1.4, alpha=0.45 if faint else 1.0)


def _finish(axes: Axes) -> None:
    """Small numbers as they are, where other plots of a report count things."""
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("steps")
