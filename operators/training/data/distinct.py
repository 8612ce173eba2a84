"""Rows change places between batches until no batch holds a text twice.

Only rows that share a text with another row of the window are looked at one by one; all others are free to go anywhere,
and are what the shared ones change places with. Sizes of batches stay as they are, but for rows that find no place.

Shapes: R rows of a window, T texts of each.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

LEFT_OUT = -1


def without_repeated_texts(hashes_RT: NDArray[np.uint64], cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """places_R: which of the rows 0 .. R - 1 stands at each place, so that no two in a batch share a text.

    Batch b is the places [cuts[b], cuts[b + 1]). A place whose row is left out, and that no other takes, is `LEFT_OUT`.
    """
    shared_RT = _shared_with_other_rows(hashes_RT)
    shared_rows = np.flatnonzero(shared_RT.any(axis=1))
    if not len(shared_rows):
        return np.arange(len(hashes_RT))
    texts = {
        int(row): frozenset(hashes_RT[row, shared_RT[row]].tolist()) for row in shared_rows
    }  # of shared rows, the texts that others have too
    return _Window(len(hashes_RT), cuts, texts).settled()


def _shared_with_other_rows(hashes_RT: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which texts come in more rows than one."""
    flat = hashes_RT.reshape(-1)
    shared = np.zeros(len(flat), bool)
    ordered = np.sort(flat)  # ten times as fast as an order by which to sort, and few texts come again
    again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(again):
        places = np.minimum(np.searchsorted(again, flat), len(again) - 1)
        found = np.flatnonzero(again[places] == flat)
        group, rows = places[found], found // hashes_RT.shape[1]
        first_row, last_row = np.full(len(again), len(hashes_RT)), np.full(len(again), -1)
        np.minimum.at(first_row, group, rows)
        np.maximum.at(last_row, group, rows)
        shared[found] = (first_row != last_row)[group]
    return shared.reshape(hashes_RT.shape)


class _Window:
    """Who stands where, and which shared texts each batch holds."""

    def __init__(self, num_rows: int, cuts: NDArray[np.int64], texts: dict[int, frozenset[int]]) -> None:
        self._texts = texts
        self._places = np.arange(num_rows)
        self._cuts = cuts.tolist()
        self._num_batches = len(cuts) - 1
        self._batch_of = np.repeat(np.arange(self._num_batches), np.diff(cuts))
        self._held: list[set[int]] = [set() for _ in range(self._num_batches)]
        is_free = np.ones(num_rows, bool)
        is_free[list(texts)] = False
        # Places of free rows by batch, taken from the end
        self._free = [
            (self._cuts[b] + np.flatnonzero(is_free[self._cuts[b] : self._cuts[b + 1]])).tolist()
            for b in range(self._num_batches)
        ]

    def settled(self) -> NDArray[np.int64]:
        """The places after all changes."""
        waiting = []
        for row, texts in self._texts.items():
            held = self._held[self._batch_of[row]]
            if held.isdisjoint(texts):
                held |= texts
            else:
                waiting.append(row)
                self._places[row] = LEFT_OUT
        waiting = [row for row in waiting if not self._change_with_free(row)]
        while waiting:  # a change may make room for another
            still = [row for row in waiting if not self._change_with_shared(row)]
            if len(still) == len(waiting):
                break
            waiting = still
        return self._places

    def _batches_from(self, batch: int) -> Iterable[int]:
        """The other batches, from the next one on, and last the batch itself."""
        return ((batch + step) % self._num_batches for step in range(1, self._num_batches + 1))

    def _change_with_free(self, row: int) -> bool:
        """Give the row the place of a free row of another batch, which takes the place that the row leaves."""
        texts, home = self._texts[row], int(self._batch_of[row])
        for batch in self._batches_from(home):
            if self._free[batch] and self._held[batch].isdisjoint(texts):
                place = self._free[batch].pop()
                self._places[row], self._places[place] = self._places[place], row
                self._free[home].append(row)
                self._held[batch] |= texts
                return True
        return False

    def _change_with_shared(self, row: int) -> bool:
        """The same with a row that shares texts, but none where it comes to; or take an empty place."""
        texts, home = self._texts[row], int(self._batch_of[row])
        is_open = self._places[row] == LEFT_OUT  # else another row has taken it
        for batch in self._batches_from(home):
            if not self._held[batch].isdisjoint(texts):
                continue
            for place in range(self._cuts[batch], self._cuts[batch + 1]):
                other = int(self._places[place])
                moved = self._texts.get(other, frozenset())
                if other != LEFT_OUT and not (is_open and self._held[home].isdisjoint(moved)):
                    continue
                if other != LEFT_OUT:
                    self._places[row] = other
                self._places[place] = row
                self._held[batch] = (self._held[batch] - moved) | texts
                self._held[home] |= moved
                return True
        return False
