"""Search list by list instead of query by query: each inverted list is decoded once for all queries that look into it.

faiss scans a list anew for every query. Where some dozens of queries probe the same list, one matrix product of them
with the decoded list does the same comparisons several times as fast (faiss.contrib.big_batch_search has the idea, but
takes no deleted or filtered rows and prints a line for every list). The product may be taken with the vectors of the
finer store: then all vectors of the lists get its scores, which finds no less than ranking the best by small codes.

Memory, besides queries and results: 16 bytes a query and list, 8 MB of decoded vectors, as much again of queries and
of scores (_BLOCK_BYTES).

Shapes: Q queries of D components, P probed lists a query, N vectors of a block, K results.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.index.codes import decode, flat_codes, list_codes, list_ids
from operators.index.library import faiss
from operators.index.trained import Prepared

_BLOCK_BYTES = 8 << 20


def search_by_list(
    core: Any, finer: Any | None, quantizer: Any, queries: Prepared, k: int, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best of each query's lists, best first; -1 where there are fewer.

    By the lists' own codes, as `search_preassigned` finds them, or by those of a `finer` store. `mask` says which ids
    may be found (None: all).
    """
    assert queries.lists_QP is not None, "an index with inverted lists prepares them"
    largest = core.metric_type == faiss.METRIC_INNER_PRODUCT
    queries_QD = queries.core_QD if finer is None else np.ascontiguousarray(queries.original_QD, np.float32)
    heap = faiss.ResultHeap(len(queries_QD), k, keep_max=largest)
    # Both are filled anew for every list, since new memory costs as much as what is done with it.
    some_QD = np.empty((min(len(queries_QD), _block_rows(queries_QD.shape[1])), queries_QD.shape[1]), np.float32)
    scores = np.empty(_BLOCK_BYTES // 4, np.float32)
    scores_pointer = faiss.swig_ptr(scores)
    for number, rows in _queries_of_lists(queries.lists_QP, core.nlist):
        for ids, vectors_ND in _blocks(core, finer, quantizer, number, mask):
            # All scores into the heaps at once: few of a list's vectors get past a query's best of nearer lists, while
            # faiss.knn sorts out each list's own best first and takes 4 times as long.
            count, ids_pointer = len(ids), faiss.swig_ptr(ids)
            step = min(len(some_QD), len(scores) // count)
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                part_QD = np.take(queries_QD, part, axis=0, out=some_QD[: len(part)], mode="clip")
                _score(part_QD, vectors_ND, largest, scores[: len(part) * count].reshape(-1, count))
                heap.heaps.addn_query_subset_with_ids(
                    len(part), faiss.swig_ptr(part), count, scores_pointer, ids_pointer, 0
                )
    heap.finalize()
    return heap.D, heap.I


def _block_rows(dim: int) -> int:
    return max(1, _BLOCK_BYTES // (4 * dim))


def _queries_of_lists(lists_QP: NDArray[np.int64], num_lists: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each list that is looked into, with the queries that do."""
    probes, lists = lists_QP.shape[1], lists_QP.reshape(-1)
    lists = np.where(lists < 0, num_lists, lists)  # a graph of centroids may find fewer than asked for
    order = np.argsort(lists.astype(np.uint16) if num_lists < 1 << 16 else lists, kind="stable")  # a radix sort
    order //= probes
    ends = np.concatenate([[0], np.cumsum(np.bincount(lists, minlength=num_lists))])[: num_lists + 1]
    for number in np.flatnonzero(np.diff(ends)).tolist():
        yield number, order[ends[number] : ends[number + 1]]


def _blocks(
    core: Any, finer: Any | None, quantizer: Any, number: int, mask: NDArray[np.bool_] | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Ids and vectors of one list, some at a time, without those that may not be found."""
    all_ids = list_ids(core, number)
    codes = list_codes(core, number) if finer is None else flat_codes(finer)
    rows = _block_rows(core.d if finer is None else finer.d)
    for start in range(0, len(all_ids), rows):
        ids = all_ids[start : start + rows]
        kept = None if mask is None else mask[ids]
        if kept is not None:
            ids = ids[kept]
        if not len(ids):
            continue
        if finer is not None:
            yield ids, decode(finer, np.take(codes, ids, axis=0))
            continue
        part = codes[start : start + rows]
        vectors_ND = decode(core, part if kept is None else part[kept])
        has_residuals = not isinstance(core, faiss.IndexIVFFlat) and core.by_residual
        yield ids, vectors_ND + quantizer.reconstruct(number) if has_residuals else vectors_ND


def _score(
    queries_QD: NDArray[np.float32], vectors_ND: NDArray[np.float32], is_product: bool, out_QN: NDArray[np.float32]
) -> None:
    """Inner products or squared distances of all pairs, as one matrix product."""
    np.matmul(queries_QD, vectors_ND.T, out=out_QN)
    if is_product:
        return
    out_QN *= -2
    out_QN += np.einsum("qd,qd->q", queries_QD, queries_QD)[:, None]
    out_QN += np.einsum("nd,nd->n", vectors_ND, vectors_ND)
    np.maximum(out_QN, 0, out=out_QN)
