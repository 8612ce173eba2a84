"""The exact nearest documents of all queries, kept while blocks of a corpus pass by.

Memory is queries x k, whatever the corpus: a block's vectors go as soon as they are compared, and of its ids only
those stay that some query still has among its k best.

Shapes: Q queries, K results kept, J results of a block, N vectors of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import InputError
from operators.evaluation.retrieval import Run
from operators.index.library import faiss
from operators.index.truth import nearest

_SLACK = 4  # ids are sorted out when so many times the needed ones are kept


@dataclass(frozen=True, slots=True)
class BlockHits:
    """The nearest documents of a block."""

    scores_QJ: NDArray[np.float32]
    numbers_QJ: NDArray[np.int64]  # of the documents, over the whole corpus
    numbers_H: NDArray[np.int64]  # every number above once, ascending
    ids_H: pa.StringArray


def nearest_of_block(
    queries_QD: NDArray[np.float32], vectors_ND: NDArray[np.float32], ids_N: pa.StringArray, start: int, k: int
) -> BlockHits:
    """Compare all queries with a block whose first document has the number `start`, by inner product."""
    scores_QJ, places_QJ = nearest(queries_QD, vectors_ND, min(k, len(vectors_ND)), "ip")
    hits = np.unique(places_QJ)
    return BlockHits(scores_QJ, places_QJ + start, hits + start, ids_N.take(pa.array(hits)))


class NearestDocuments:
    """Collects the k best of every query over all blocks."""

    def __init__(self, num_queries: int, k: int) -> None:
        self._heap = faiss.ResultHeap(num_queries, k, keep_max=True)
        self._most = _SLACK * max(num_queries * k, 1)
        self._numbers: list[NDArray[np.int64]] = []
        self._ids: list[pa.StringArray] = []
        self._kept = 0

    def add(self, hits: BlockHits) -> None:
        """Merge a block's results; blocks may come in any order."""
        self._heap.add_result(
            np.ascontiguousarray(hits.scores_QJ, np.float32), np.ascontiguousarray(hits.numbers_QJ, np.int64)
        )
        self._numbers.append(hits.numbers_H)
        self._ids.append(hits.ids_H)
        self._kept += len(hits.numbers_H)
        if self._kept > self._most:
            self._sort_out()

    @property
    def ids_kept(self) -> int:
        """Document ids in memory."""
        return self._kept

    def run(self, query_ids: tuple[str, ...]) -> Run:
        """The documents of every query with their scores; InputError where two documents have one id."""
        self._heap.finalize()
        numbers, ids = self._names()
        order = np.argsort(numbers)
        ids = ids.take(pa.array(order))
        found: dict[str, dict[str, float]] = {}
        for query, scores_K, numbers_K in zip(query_ids, self._heap.D, self._heap.I, strict=True):
            kept = numbers_K >= 0
            names = ids.take(pa.array(np.searchsorted(numbers[order], numbers_K[kept]))).to_pylist()
            found[query] = dict(zip(names, scores_K[kept].tolist(), strict=True))
            if len(found[query]) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f"give every document an id of its own: {twice!r} is that of several")
        return found

    def _names(self) -> tuple[NDArray[np.int64], Any]:
        if not self._numbers:
            return np.empty(0, np.int64), pa.array([], pa.string())
        return np.concatenate(self._numbers), pa.concat_arrays(self._ids)

    def _sort_out(self) -> None:
        numbers, ids = self._names()
        kept = np.flatnonzero(np.isin(numbers, self._heap.I))
        self._numbers, self._ids = [numbers[kept]], [ids.take(pa.array(kept))]
        self._kept = len(kept)
