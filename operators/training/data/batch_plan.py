"""Which rows of which set make the batch of a step: a function of the seed, the sets and the step alone.

    step -> set: every set has its turns spread over time in proportion to its weight, one set per batch
         -> turn k of that set -> epoch k // batches and batch k % batches of it
         -> window of that epoch, in which rows have changed places so that no batch holds a text twice

No state is kept from step to step, so that a run resumes at any step at once, and every rank computes the same batch
and takes its slice of it, whatever their number. What is computed is kept for the steps that follow: one window of
each set, a few bytes a row.

Epochs. An epoch of a set of N rows has M = ceil(N / batch size) batches. They are of even size (they differ by one row
at most, none is larger than the batch size), so that there is no small last batch; each row is in one of them. Without
weights of their own, sets are through their first epochs at the same step, the sum of their M.

Texts in a batch. Rows are dealt out in a random order. Where two rows of a batch share a text (a query, a positive, a
negative), the later one changes places with a row of another batch of its window. A row for which no batch of the
window has a place is left out of this epoch: that happens where a text comes in more rows than there are batches.
`num_left_out` counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.training.data.distinct import LEFT_OUT, without_repeated_texts
from operators.training.data.mixing import Permutation, key_of, mixed

# A window is planned at once: large enough for rows to find another batch, small enough to plan in tenths of a second.
WINDOW_ROWS, WINDOW_BATCHES = 1 << 17, 64
_JITTER = 1 << 20  # a turn's place in its interval, coarse enough that rounding never moves it over an edge

HashesOf = Callable[[NDArray[np.int64]], NDArray[np.uint64]]


@dataclass(frozen=True, slots=True)
class PlannedSet:
    """What the plan has to know of a set."""

    name: str
    num_rows: int
    weight: float | None = None  # share of the steps; None: its number of batches
    hashes: HashesOf | None = None  # rows [R] -> hashes_RT of their texts; None: a batch may hold a text twice


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """The global batch of one step."""

    step: int  # from 0
    set_index: int
    epoch: int  # of this set, from 0
    rows_B: NDArray[np.int64]


def rank_slice(num_rows: int, rank: int, world_size: int) -> slice:
    """The part of a global batch that is a rank's: contiguous, even to one row, all of it in the order of the ranks."""
    return slice(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)


class BatchPlan:
    """The batches of a training. Raises InputError for a set without rows, or a wrong batch size."""

    def __init__(self, sets: Sequence[PlannedSet], batch_size: int, seed: int) -> None:
        if not sets or batch_size < 1:
            raise InputError(f"give sets and a batch size of at least 1; got {len(sets)} sets and {batch_size}")
        empty = [planned.name for planned in sets if planned.num_rows < 1]
        if empty:
            raise InputError(f"take the set {empty[0]!r} out: it has no rows")
        self._epochs = [_Epochs(planned, batch_size, key_of("rows", seed, planned.name)) for planned in sets]
        weights = [
            epochs.num_batches if planned.weight is None else planned.weight
            for planned, epochs in zip(sets, self._epochs, strict=True)
        ]
        self._turns = _Turns(np.array(weights, np.float64), [key_of("turns", seed, planned.name) for planned in sets])

    def batch(self, step: int) -> PlannedBatch:
        """The batch of a step."""
        set_index, turn = self._turns.at(step)
        epoch, rows_B = self._epochs[set_index].batch(turn)
        return PlannedBatch(step, set_index, epoch, rows_B)

    def turn(self, step: int) -> tuple[int, int]:
        """The set of a step, and how many batches it has had before."""
        return self._turns.at(step)

    def num_batches(self, set_index: int) -> int:
        """Batches of one epoch of a set."""
        return self._epochs[set_index].num_batches

    def batch_sizes(self, set_index: int) -> list[int]:
        """Rows of each batch of a set in its first window: 64 batches or 131,072 rows, whichever is more."""
        return self._epochs[set_index].first_sizes()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every set is gone through once, where none has a weight of its own."""
        return sum(epochs.num_batches for epochs in self._epochs)

    def num_left_out(self, set_index: int, epoch: int) -> int:
        """Rows of a set that have no place in an epoch; plans all of its windows."""
        return self._epochs[set_index].num_left_out(epoch)


class _Turns:
    """Turn k of a set comes at time (k + jitter) / share, the jitter in (0, 1): steps are the turns in order of time.

    Up to any step a set has had its share of the steps, give or take the number of sets.
    """

    def __init__(self, weights_S: NDArray[np.float64], keys: Sequence[int]) -> None:
        self._shares_S = weights_S / weights_S.sum()
        self._keys_S = np.array(keys, np.uint64)
        self._sets = np.arange(len(keys))

    def at(self, step: int) -> tuple[int, int]:
        """The set of a step and which of its turns it is."""
        # Before time t there are between t - S and t + S turns, so that the step's own lies within S of its number.
        first_S = self._turns_before(max(0, step - len(self._sets)))
        counts_S = self._turns_before(step + len(self._sets) + 1) - first_S
        sets = np.repeat(self._sets, counts_S)
        turns = np.arange(len(sets)) + np.repeat(first_S - (np.cumsum(counts_S) - counts_S), counts_S)
        place = np.lexsort((sets, self._times(sets, turns)))[step - int(first_S.sum())]
        return int(sets[place]), int(turns[place])

    def _turns_before(self, time: int) -> NDArray[np.int64]:
        """How many turns each set has before a time."""
        whole_S = np.floor(time * self._shares_S).astype(np.int64)
        turns_S: NDArray[np.int64] = whole_S + (self._times(self._sets, whole_S) < time)
        return turns_S

    def _times(self, sets: NDArray[np.int64], turns: NDArray[np.int64]) -> NDArray[np.float64]:
        drawn = mixed(turns.astype(np.uint64), self._keys_S[sets]) % np.uint64(_JITTER)
        return np.asarray((turns + (drawn + 0.5) / _JITTER) / self._shares_S[sets])


class _Epochs:
    """The batches of one set, epoch after epoch."""

    def __init__(self, planned: PlannedSet, batch_size: int, key: int) -> None:
        self._set, self._key = planned, key
        self.num_batches = -(-planned.num_rows // batch_size)
        self._window_batches = max(WINDOW_BATCHES, WINDOW_ROWS // batch_size)
        self._planned: tuple[int, int] | None = None  # epoch and window of what follows
        self._batches: list[NDArray[np.int64]] = []

    def batch(self, turn: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch and the rows of the set's `turn`-th batch."""
        epoch, number = divmod(turn, self.num_batches)
        window, inside = divmod(number, self._window_batches)
        if self._planned != (epoch, window):
            self._planned, self._batches = (epoch, window), self._plan(epoch, window)
        return epoch, self._batches[inside]

    def first_sizes(self) -> list[int]:
        return [len(rows_B) for rows_B in self._plan(0, 0)]

    def num_left_out(self, epoch: int) -> int:
        windows = range(-(-self.num_batches // self._window_batches))
        placed = sum(len(rows_B) for window in windows for rows_B in self._plan(epoch, window))
        return self._set.num_rows - placed

    def _plan(self, epoch: int, window: int) -> list[NDArray[np.int64]]:
        first = window * self._window_batches
        last = min(first + self._window_batches, self.num_batches)
        edges = np.arange(first, last + 1) * self._set.num_rows // self.num_batches
        rows_R = Permutation(self._set.num_rows, key_of(self._key, epoch))(int(edges[0]), int(edges[-1]))
        cuts = edges - edges[0]
        if self._set.hashes is None:
            return np.split(rows_R, cuts[1:-1])
        places_R = without_repeated_texts(self._set.hashes(rows_R), cuts)
        batches = np.split(places_R, cuts[1:-1])
        return [rows_R[places_B[places_B != LEFT_OUT]] for places_B in batches]
