"""Sparse vectors as they travel and as they are stored: rows one after another (CSR).

Shapes: N vectors, S entries of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

INDICES, WEIGHTS = "sparse_indices", "sparse_weights"  # columns of the embeddings dataset
FIELDS = (pa.field(INDICES, pa.list_(pa.int32())), pa.field(WEIGHTS, pa.list_(pa.float32())))


@dataclass(frozen=True, slots=True)
class SparseVectors:
    """Entries of N vectors; those of one vector have ascending indices and weights above 0."""

    lengths_N: NDArray[np.int64]
    indices_S: NDArray[np.int32]
    weights_S: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.lengths_N)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each vector begins among the entries, and the end."""
        return np.concatenate([[0], np.cumsum(self.lengths_N)])

    @staticmethod
    def empty(count: int) -> SparseVectors:
        """Vectors without entries."""
        return SparseVectors(np.zeros(count, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))

    @staticmethod
    def concat(parts: Sequence[SparseVectors]) -> SparseVectors:
        """Vectors one after another."""
        if not parts:
            return SparseVectors.empty(0)
        return SparseVectors(
            np.concatenate([part.lengths_N for part in parts]),
            np.concatenate([part.indices_S for part in parts]),
            np.concatenate([part.weights_S for part in parts]),
        )

    def placed(self, rows: NDArray[np.int64], count: int) -> SparseVectors:
        """`count` vectors of which number rows[i] is vector i of these, and the others have no entries."""
        lengths_N = np.zeros(count, np.int64)
        lengths_N[rows] = self.lengths_N
        order = np.argsort(rows, kind="stable")
        lengths = self.lengths_N[order]
        shifts = self.offsets[:-1][order] - (np.cumsum(lengths) - lengths)
        places_S = np.repeat(shifts, lengths) + np.arange(int(lengths.sum()))
        return SparseVectors(lengths_N, self.indices_S[places_S], self.weights_S[places_S])

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> SparseVectors:
        """The vectors of these rows, in this order."""
        rows = np.arange(len(self))[rows]
        lengths = self.lengths_N[rows]
        shifts = self.offsets[:-1][rows] - (np.cumsum(lengths) - lengths)
        places_S = np.repeat(shifts, lengths) + np.arange(int(lengths.sum()))
        return SparseVectors(lengths, self.indices_S[places_S], self.weights_S[places_S])

    def dense(self, width: int) -> NDArray[np.float32]:
        """The vectors written out, [N, width]; for a few of them."""
        values = np.zeros((len(self), width), np.float32)
        values[np.repeat(np.arange(len(self)), self.lengths_N), self.indices_S] = self.weights_S
        return values

    def to_arrow(self) -> dict[str, pa.ListArray]:
        """The columns of an embeddings dataset."""
        if len(self.indices_S) > np.iinfo(np.int32).max:
            raise ValueError(f"{len(self.indices_S)} entries are too many for one table: make fragments smaller")
        offsets = pa.array(self.offsets.astype(np.int32))
        return {
            INDICES: pa.ListArray.from_arrays(offsets, pa.array(self.indices_S)),
            WEIGHTS: pa.ListArray.from_arrays(offsets, pa.array(self.weights_S)),
        }

    @staticmethod
    def from_table(table: pa.Table) -> SparseVectors:
        """The vectors in a table's columns (no nulls); whether they are sound is for `faults` to say."""
        indices, weights = (_one_array(table[name]) for name in (INDICES, WEIGHTS))
        return SparseVectors(
            np.diff(indices.offsets.to_numpy()).astype(np.int64),
            indices.flatten().to_numpy(),
            weights.flatten().to_numpy(),
        )

    def cosines(self, other: SparseVectors) -> NDArray[np.float64]:
        """The cosine of each vector with the same row of others; of two without entries it is 1."""
        keys, other_keys = (v._rows_S().astype(np.int64) << 32 | v.indices_S for v in (self, other))
        shared, own, others = np.intersect1d(keys, other_keys, assume_unique=True, return_indices=True)
        count = len(self)
        products = self.weights_S[own].astype(np.float64) * other.weights_S[others]
        dot_N = np.bincount(shared >> 32, products, minlength=count)
        squares_N, other_N = (
            np.bincount(v._rows_S(), v.weights_S.astype(np.float64) ** 2, count) for v in (self, other)
        )
        cosines_N = np.where((squares_N > 0) | (other_N > 0), 0.0, 1.0)
        both_N = (squares_N > 0) & (other_N > 0)
        np.divide(dot_N, np.sqrt(squares_N * other_N), out=cosines_N, where=both_N)
        return cosines_N

    def _rows_S(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self)), self.lengths_N)

    def faults(self, width: int) -> list[str]:
        """What is wrong with entries that claim to be sparse vectors over `width` ids."""
        found = []
        if self.indices_S.size != self.weights_S.size:
            return [f"{self.indices_S.size} sparse indices stand beside {self.weights_S.size} weights"]
        starts = np.zeros(self.indices_S.size + 1, bool)
        starts[self.offsets[:-1]] = True
        falls = (np.diff(self.indices_S.astype(np.int64), prepend=-1) <= 0) & ~starts[:-1]
        if falls.any():
            found.append(f"{int(falls.sum())} sparse indices do not ascend in their vector")
        outside = (self.indices_S < 0) | (self.indices_S >= width)
        if outside.any():
            found.append(f"{int(outside.sum())} sparse indices are not among the {width} of the vocabulary")
        bad = ~(np.isfinite(self.weights_S) & (self.weights_S > 0))
        if bad.any():
            found.append(f"{int(bad.sum())} sparse weights are not finite and above 0")
        return found


def _one_array(column: Any) -> Any:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
