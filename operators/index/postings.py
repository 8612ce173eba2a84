"""The sparse part of a shard: an inverted file, from an id of the vocabulary to the vectors that have it.

One Arrow file, mapped when it is opened: a row for each id that occurs, `term`, with the `ordinals` of its vectors,
ascending, and its `weights` in them. A search is exact: the product of the queries with the mapped matrix, row by row
of the queries, so that a score is summed in the order of the ids and does not depend on what else is in the shard.

Shapes: Q queries, K results, N vectors of the shard, V ids of the vocabulary, S entries, T ids that occur.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.embedder.sparse_vectors import SparseVectors
from operators.errors import InputError

if TYPE_CHECKING:
    import scipy.sparse

Mask = NDArray[np.bool_]
_SCHEMA = pa.schema(
    [
        pa.field("term", pa.int32()),
        pa.field("ordinals", pa.list_(pa.int32())),
        pa.field("weights", pa.list_(pa.float32())),
    ]
)
ENTRY_BUILD_BYTES = 32  # of memory for each entry while they are sorted: 12 as read, 12 in order, 8 of the order
_SCORES_AT_ONCE = 1 << 24  # of a product: 128 MB


class PostingsWriter:
    """Takes the sparse vectors of a shard in the order of their ordinals, and leaves its inverted file."""

    def __init__(self, num_ids: int) -> None:
        self._num_ids = num_ids
        self._parts: list[SparseVectors] = []

    def add(self, vectors: SparseVectors, where: str) -> None:
        """Add vectors; raises InputError naming `where` they come from if they are not sound."""
        faults = vectors.faults(self._num_ids)
        if faults:
            raise InputError(f"embed {where} again: {faults[0]}")
        self._parts.append(vectors)

    @property
    def entries(self) -> int:
        """Entries so far."""
        return sum(len(part.indices_S) for part in self._parts)

    def write(self, file: Path) -> None:
        """Write the file."""
        whole = SparseVectors.concat(self._parts)
        if len(whole.indices_S) > np.iinfo(np.int32).max:
            raise InputError(f"set shards.rows lower: {len(whole.indices_S):,} sparse entries are too many for a shard")
        self._parts = []
        order = np.argsort(whole.indices_S, kind="stable")
        ordinals_S = np.repeat(np.arange(len(whole), dtype=np.int32), whole.lengths_N)[order]
        terms_T, counts_T = np.unique(whole.indices_S, return_counts=True)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts_T)]).astype(np.int32))
        lists = (pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ordinals_S, whole.weights_S[order]))
        batch = pa.record_batch([pa.array(terms_T, pa.int32()), *lists], schema=_SCHEMA)
        with pa.ipc.new_file(str(file), _SCHEMA) as writer:
            writer.write_batch(batch)


class Postings:
    """An inverted file whose hash has been checked, mapped."""

    def __init__(self, file: Path, rows: int) -> None:
        import scipy.sparse  # a quarter of a second, which dense searches need not pay

        try:
            batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"restore {file} or build the index again: it does not read ({error})") from None
        self._rows = rows
        self._terms_T = batch["term"].to_numpy()
        ordinals, weights = batch["ordinals"], batch["weights"]
        parts = (weights.values.to_numpy(), ordinals.values.to_numpy(), ordinals.offsets.to_numpy())
        self._matrix_TN = scipy.sparse.csr_array(parts, shape=(len(self._terms_T), rows))  # views of the mapping

    def search(
        self, queries: SparseVectors, k: int, mask: Mask | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k largest inner products above 0, equal ones by ordinal: scores and ordinals [Q, k], -1 where fewer.

        `mask` says which ordinals may be found (None: all).
        """
        scores_QK = np.full((len(queries), k), -np.inf, np.float32)
        ordinals_QK = np.full((len(queries), k), -1, np.int64)
        queries_QT = self._by_term(queries)
        for start, end in self._parts(queries_QT):
            product = queries_QT[start:end] @ self._matrix_TN
            for row in range(end - start):
                inside = slice(product.indptr[row], product.indptr[row + 1])
                scores, ordinals = best(product.data[inside], product.indices[inside], k, mask)
                scores_QK[start + row, : len(scores)] = scores
                ordinals_QK[start + row, : len(scores)] = ordinals
        return scores_QK, ordinals_QK

    def _by_term(self, queries: SparseVectors) -> scipy.sparse.csr_array:
        """The queries over the ids that occur here; the others add nothing to any score."""
        import scipy.sparse

        places_S = np.searchsorted(self._terms_T, queries.indices_S)
        known_S = places_S < len(self._terms_T)
        known_S[known_S] = self._terms_T[places_S[known_S]] == queries.indices_S[known_S]
        rows_S = np.repeat(np.arange(len(queries)), queries.lengths_N)
        counts = np.bincount(rows_S[known_S], minlength=len(queries))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        columns = (queries.weights_S[known_S], places_S[known_S].astype(np.int32), offsets.astype(np.int32))
        return scipy.sparse.csr_array(columns, shape=(len(queries), len(self._terms_T)))

    def _parts(self, queries_QT: scipy.sparse.csr_array) -> Iterator[tuple[int, int]]:
        """Runs of queries whose products fit the memory, one query at least."""
        per_entry = np.diff(self._matrix_TN.indptr)[queries_QT.indices]
        reached = np.concatenate([[0], np.cumsum(per_entry, dtype=np.int64)])[queries_QT.indptr]
        scores_Q = np.minimum(np.diff(reached), self._rows)
        start = 0
        while start < len(scores_Q):
            fitting = int(np.searchsorted(np.cumsum(scores_Q[start:]), _SCORES_AT_ONCE, side="right"))
            end = start + max(1, fitting)
            yield start, end
            start = end


def best(
    scores: NDArray[np.float32], ids: NDArray[np.integer], k: int, mask: Mask | None = None
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """The k largest scores, best first, and equal ones by id."""
    if mask is not None:
        allowed = mask[ids]
        scores, ids = scores[allowed], ids[allowed]
    if len(scores) > k:
        likely = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]  # those that tie with the last too
        scores, ids = scores[likely], ids[likely]
    order = np.lexsort((ids, -scores))[:k]
    return scores[order], ids[order]


def best_of_all(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best of several answers (scores and ids [Q, K], -1 where fewer) to the same queries, equal ones by id."""
    scores_QK = np.concatenate([scores for scores, _ in parts], axis=1)
    ids_QK = np.concatenate([ids for _, ids in parts], axis=1)
    order_QK = np.lexsort((ids_QK, np.where(ids_QK >= 0, -scores_QK, np.inf)), axis=1)[:, :k]
    return np.take_along_axis(scores_QK, order_QK, 1), np.take_along_axis(ids_QK, order_QK, 1)
