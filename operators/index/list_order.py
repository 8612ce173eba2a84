"""Search list by list instead of query by query: each inverted list is decoded once for all queries that look into it.

faiss scans a list anew for every query. Where some dozens of queries probe the same list, one matrix product of them
with the decoded list does the same comparisons 4 times as fast or more (IVF-SQ8; faiss.contrib.big_batch_search has the
idea, but takes no deleted or filtered rows and prints a line for every list).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.index.library import faiss
from operators.index.trained import Prepared

# A list costs about 40 microseconds besides its vectors, and scanning it query by query 0.04 more a pair than a product
# does (SQ8, 384 components): with fewer pairs a list, queries one by one are as fast.
_MIN_PAIRS_PER_LIST, _MIN_QUERIES_PER_LIST = 2000, 4
_MATRIX_ELEMENTS = 1 << 23


def suits(core: Any, num_queries: int, probes: int) -> bool:
    """Whether searching by list wins for this many queries."""
    has_plain_codes = isinstance(core, (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer))
    per_list = num_queries * probes / core.nlist
    enough = per_list >= _MIN_QUERIES_PER_LIST and per_list * core.ntotal / core.nlist >= _MIN_PAIRS_PER_LIST
    return has_plain_codes and enough


def search_by_list(
    core: Any, quantizer: Any, queries: Prepared, k: int, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best of each query's lists, as `search_preassigned` finds them; -1 where there are fewer.

    `mask` says which ids may be found (None: all).
    """
    assert queries.lists_QP is not None, "an index with inverted lists prepares them"
    largest = core.metric_type == faiss.METRIC_INNER_PRODUCT
    heap = faiss.ResultHeap(len(queries.core_QD), k, keep_max=largest)
    probes = queries.lists_QP.shape[1]
    lists = queries.lists_QP.reshape(-1)
    order = np.argsort(lists, kind="stable")
    ends = np.searchsorted(lists[order], np.arange(core.nlist + 1))
    for number in range(core.nlist):
        of_list = order[ends[number] : ends[number + 1]]
        if not len(of_list):
            continue
        ids, vectors = _decode(core, quantizer, number)
        if mask is not None:
            kept = mask[ids]
            ids, vectors = ids[kept], vectors[kept]
        if not len(ids):
            continue
        rows = of_list // probes
        # All scores into the heaps at once: few of a list's vectors get past a query's best of nearer lists, while
        # faiss.knn sorts out each list's own best first and takes 4 times as long.
        step = max(1, _MATRIX_ELEMENTS // len(ids))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            heap.add_result_subset(part, _scores(queries.core_QD[part], vectors, largest), ids)
    heap.finalize()
    return heap.D, heap.I


def _scores(queries_QD: NDArray[np.float32], vectors_ND: NDArray[np.float32], is_product: bool) -> NDArray[np.float32]:
    """Inner products or squared distances of all pairs; as one matrix product."""
    products_QN: NDArray[np.float32] = queries_QD @ vectors_ND.T
    if is_product:
        return products_QN
    products_QN *= -2
    products_QN += np.einsum("qd,qd->q", queries_QD, queries_QD)[:, None]
    products_QN += np.einsum("nd,nd->n", vectors_ND, vectors_ND)
    return np.maximum(products_QN, 0, out=products_QN)


def _decode(core: Any, quantizer: Any, number: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids and vectors of one list."""
    lists = core.invlists
    size = lists.list_size(number)
    if not size:
        return np.empty(0, np.int64), np.empty((0, core.d), np.float32)
    ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
    codes = faiss.rev_swig_ptr(lists.get_codes(number), size * core.code_size).reshape(size, core.code_size)
    if isinstance(core, faiss.IndexIVFFlat):
        return ids, codes.view(np.float32)
    vectors: NDArray[np.float32] = core.sq.decode(codes)
    if core.by_residual:
        vectors += quantizer.reconstruct(number)
    return ids, vectors
