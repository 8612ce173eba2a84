"""The plots of a report as SVG text: drawn without a display, the same bytes for the same figures.

Letters stay text, set in the page's own font, and carry no markup: a `$` in a label is a dollar. matplotlib is imported
when the first plot is drawn, since that takes a second.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from operators.report.figures import count, duration
from operators.work.fragment import LENGTH_EDGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from operators.report.summary import ThroughputPoint

INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e8ec"
BLUE, ORANGE, RED = "#2f6fdb", "#e08a1e", "#c8453b"
SERIES = (BLUE, ORANGE, "#23804a", "#8250c4", RED, "#3a9fb5")  # models and curves in one plot
_WIDTH, _HEIGHT = 5.6, 2.9  # inches, at 72 points; the page scales it
_MAX_POINTS = 60
_MAX_LABEL = 28


def throughput_svg(points: Sequence[ThroughputPoint], mean: float, planned: float | None) -> str:
    """Tokens per second over time, in at most 60 steps of equal time, with the run's mean and the planned speed."""
    seconds = np.array([0.0, *(point.seconds for point in points)])
    tokens = np.array([0.0, *(point.tokens for point in points)])
    edges = np.linspace(0.0, max(seconds[-1], 1e-9), min(_MAX_POINTS, max(len(points), 1)) + 1)
    rates = np.diff(np.interp(edges, seconds, tokens)) / np.diff(edges)
    scale, unit = _time_unit(float(edges[-1]))

    def draw(axes: Axes) -> None:
        axes.stairs(rates, edges / scale, fill=True, color=BLUE, alpha=0.18)
        axes.stairs(rates, edges / scale, color=BLUE, linewidth=1.6, label="measured")
        axes.axhline(mean, color=INK, linewidth=1, linestyle=(0, (1, 2)), label=f"mean {count(mean)}")
        if planned is not None:
            axes.axhline(planned, color=ORANGE, linewidth=1.2, linestyle="--", label=f"plan {count(planned)}")
        axes.set_xlim(0, float(edges[-1]) / scale)
        axes.set_ylim(0, 1.25 * max(float(rates.max()), mean, planned or 0.0, 1e-9))
        axes.set_xlabel(unit)
        axes.legend(loc="upper right", ncols=3)

    return svg("throughput", draw)


def recall_svg(points: Sequence[tuple[float, float, float]], target: float, chosen: tuple[float, float]) -> str:
    """Recall over CPU milliseconds a query: (ms, recall, lower bound) of every setting, the target, the chosen one."""
    ordered = sorted(points)
    cost = np.array([point[0] for point in ordered])
    recall, lower = (np.array([point[i] for point in ordered]) for i in (1, 2))

    def draw(axes: Axes) -> None:
        axes.vlines(cost, lower, recall, color=BLUE, alpha=0.35, linewidth=3)
        axes.plot(cost, recall, "o", color=BLUE, markersize=4, label="measured, down to the 95 % bound")
        axes.plot(*chosen, "o", color=RED, markersize=7, label="chosen")
        axes.axhline(target, color=ORANGE, linewidth=1.4, linestyle=(0, (4, 2)), label=f"target {target:g}")
        if len(cost) > 1 and cost[0] > 0 and cost[-1] / cost[0] > 8:
            axes.set_xscale("log")
        axes.yaxis.set_major_formatter("{x:.2f}")
        axes.set_xlabel("CPU ms a query")
        axes.legend(loc="lower right")

    return svg("recall", draw)


def scores_svg(models: Sequence[tuple[str, Sequence[tuple[str, float, float, float]]]]) -> str:
    """Scores of every model: (model, [(task, score, low, high)]), tasks side by side with their intervals."""
    tasks = list(dict.fromkeys(task for _, scores in models for task, *_ in scores))
    width = 0.8 / max(len(models), 1)

    def draw(axes: Axes) -> None:
        for i, (name, scores) in enumerate(models):
            at = [tasks.index(task) + (i - (len(models) - 1) / 2) * width for task, *_ in scores]
            values = np.array([score for _, score, _, _ in scores])
            reach = np.array([[score - low, high - score] for _, score, low, high in scores]).T.clip(min=0)
            color = SERIES[i % len(SERIES)]
            axes.bar(at, values, width=0.9 * width, color=color, alpha=0.75, label=label(name))
            axes.errorbar(at, values, yerr=reach, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(tasks) > 4 else {}
        axes.set_xticks(range(len(tasks)), [label(task) for task in tasks], **slanted)
        lowest = min(low for _, scores in models for *_, low, _ in scores)
        axes.set_ylim(min(0.0, lowest), 1.25 * max([high for _, scores in models for *_, high in scores] + [1e-9]))
        axes.yaxis.set_major_formatter("{x:.2f}")
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper right", ncols=min(4, max(1, len(models))))

    return svg("scores", draw)


def recall_by_rank_svg(curves: Sequence[tuple[str, Sequence[tuple[int, float]]]]) -> str:
    """Recall of a task at every rank judged: (model, [(k, recall)])."""

    def draw(axes: Axes) -> None:
        for i, (name, points) in enumerate(curves):
            ranks, recall = zip(*points, strict=True)
            axes.plot(ranks, recall, "o-", color=SERIES[i % len(SERIES)], markersize=3.5, label=label(name))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter("{x:.2f}")
        axes.set_xlabel("results looked at")
        axes.legend(loc="lower right")

    return svg("recall by rank", draw)


def lengths_svg(histogram: Sequence[int], planned: Sequence[int] = ()) -> str:
    """Chunks by number of tokens, with the plan's expectation as an outline."""
    shown = [i for i in range(len(LENGTH_EDGES) + 1) if _at(histogram, i) or _at(planned, i)]
    bins = list(range(shown[0], shown[-1] + 1)) if shown else [0]
    names = [f"{LENGTH_EDGES[i]}" if i < len(LENGTH_EDGES) else "more" for i in bins]

    def draw(axes: Axes) -> None:
        if any(histogram):
            axes.bar(names, [_at(histogram, i) for i in bins], width=0.86, color=BLUE, alpha=0.75, label="chunks")
        if any(planned):
            edges = np.arange(len(bins) + 1) - 0.5
            axes.stairs([_at(planned, i) for i in bins], edges, color=ORANGE, linewidth=1.6, label="plan")
            axes.set_xticks(range(len(bins)), names)
        axes.set_ylim(0, 1.25 * max(*(max(_at(histogram, i), _at(planned, i)) for i in bins), 1))
        axes.set_xlabel("tokens per chunk, up to")
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(visible=False, axis="x")
        if any(planned):
            axes.legend(loc="upper right", ncols=2)

    return svg("lengths", draw)


def stages_svg(seconds: Mapping[str, float]) -> str:
    """Busy seconds of each stage, in the order in which they run, all workers together."""
    return _ranked("stages", list(seconds.items()), BLUE, duration)


def reasons_svg(reasons: Mapping[str, int], most: int = 8) -> str:
    """Rejected rows by reason, the most frequent first."""
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(num for _, num in ranked[most:])
    pairs = [(name, float(num)) for name, num in ranked[:most]]
    return _ranked("reasons", [*pairs, ("others", float(rest))] if rest else pairs, RED, count)


def _ranked(name: str, pairs: Sequence[tuple[str, float]], color: str, show: Any) -> str:
    """Horizontal bars with their values; two labels may be equal, so that places carry the bars and not names."""
    places = list(range(len(pairs)))
    values = [value for _, value in pairs]

    def draw(axes: Axes) -> None:
        bars = axes.barh(places, values, height=0.62, color=color, alpha=0.75)
        axes.bar_label(bars, [show(value) for value in values], padding=4, color=INK, fontsize=9)
        axes.set_yticks(places, [label(text) for text, _ in pairs])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(*values, 1e-9) if values else 1)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.grid(visible=False)

    return svg(name, draw)


def svg(name: str, draw: Any) -> str:
    """What `draw` puts on the axes it is given, in the style of all plots."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"embedfleet-{name}",
        "text.parse_math": False,
        "font.size": 9.5,
        "text.color": INK,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        axes.tick_params(length=0)
        draw(axes)
        sink = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(sink, format="svg", transparent=True, metadata=metadata)
    return _embeddable(sink.getvalue(), name)


def _embeddable(document: str, name: str) -> str:
    """The svg element alone, without its style sheet (which would hold for the page) and the ids of its groups."""
    element = document[document.index("<svg") :].strip()
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    box = re.search(r'viewBox="([^"]*)"', element)
    assert box is not None, "matplotlib gives its SVG a viewBox"
    head = f'<svg viewBox="{box[1]}" role="img" aria-label="{name}" {_ROOT_ATTRIBUTES}>'
    return head + element[element.index(">") + 1 :]


_ROOT_ATTRIBUTES = (
    'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" stroke-linejoin="round"'
)


def label(text: str) -> str:
    """A tick label of at most 28 characters that every font has; the page's tables have the whole text."""
    plain = "".join(c if c.isprintable() and ord(c) < 256 else "?" for c in text)
    return plain if len(plain) <= _MAX_LABEL else plain[: _MAX_LABEL - 1] + "~"


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def _at(values: Sequence[int], place: int) -> int:
    return values[place] if place < len(values) else 0
