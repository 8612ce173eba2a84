"""What a task's scoring gives: metrics, and how to take them again of resampled items for intervals and tests.

The items are what was drawn from a larger population: queries, pairs, texts. A metric that is a mean over items comes
as one value an item; any other (a correlation, an average precision) as a function of the items drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError

Draw = NDArray[np.int64]  # numbers of the items drawn, with replacement


@dataclass(frozen=True, slots=True)
class Outcome:
    """The scores of one model on one task."""

    metrics: Mapping[str, float]
    items: str  # what `num_items` counts: queries, pairs, texts, ...
    num_items: int
    by_item: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # metrics that are means of these
    of_draw: Callable[[Draw], Mapping[str, float]] | None = None  # the other metrics, of the items drawn
    notes: tuple[str, ...] = ()


def check_finite(values: NDArray[np.floating], what: str) -> None:
    """Raise InputError where a score is NaN or infinite: a metric of such scores would look like any other."""
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise InputError(f"check the model: {bad:,} of {values.size:,} {what} are not finite numbers")
