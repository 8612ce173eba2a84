"""faiss's own scan of inverted lists, query by query, for queries whose nearest lists are known.

Shapes: Q queries of D components, P probed lists a query, K results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.index.library import faiss
from operators.index.trained import Prepared

# FastScan makes tables for all queries before it scans for the first: 256 queries' stay in the CPU's cache (RaBitQ's
# are 24 KB a query at 384 components and 16 lists), and 20,000 queries' would take 500 MB.
_QUERIES_AT_ONCE = 256
_PER_QUERY_HEAP, _PER_QUERY_RESERVOIR, _HEAP_UP_TO = 10, 11, 20
_BY_QUERY = 3


def prepare_scan(core: Any) -> None:
    """Set an index to scan the lists given to it as fast as it can: with all threads, and FastScan in their order.

    `IndexIVF.search_preassigned` uses one thread unless told otherwise.
    """
    if not isinstance(core, faiss.IndexIVFFastScan):
        core.parallel_mode = _BY_QUERY


def scan(core: Any, queries: Prepared, k: int, selector: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best by the lists' codes, best first: scores and ordinals [Q, k], -1 where there are fewer."""
    assert queries.lists_QP is not None, "an index with inverted lists prepares them"
    assert queries.coarse_QP is not None, "as above"
    queries_QD, lists_QP, coarse_QP = queries.core_QD, queries.lists_QP, queries.coarse_QP
    if not isinstance(core, faiss.IndexIVFFastScan):
        return search_lists(core, queries_QD, lists_QP, coarse_QP, k, selector)
    # A query's lists from the nearest on, so that what cannot be among the best is known early; faiss would go by
    # list, for 11 queries at once: 36 instead of 26 us a query (PQ96x4fs, 16 lists of 360), 118 instead of 86 (RaBitQ).
    core.implem = _PER_QUERY_HEAP if k <= _HEAP_UP_TO else _PER_QUERY_RESERVOIR
    step = _QUERIES_AT_ONCE * int(faiss.omp_get_max_threads())
    slices = [slice(start, start + step) for start in range(0, max(1, len(queries_QD)), step)]
    parts = [search_lists(core, queries_QD[s], lists_QP[s], coarse_QP[s], k, selector) for s in slices]
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([ordinals for _, ordinals in parts])


def search_lists(
    core: Any,
    queries_QD: NDArray[np.float32],
    lists_QP: NDArray[np.int64],
    coarse_QP: NDArray[np.float32],
    k: int,
    selector: Any = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`IndexIVF.search_preassigned`; by the C++ function, since its Python wrapper takes no parameters."""
    count = len(queries_QD)
    scores_QK, ordinals_QK = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
    queries_QD = np.ascontiguousarray(queries_QD, np.float32)
    lists_QP = np.ascontiguousarray(lists_QP, np.int64)
    coarse_QP = np.ascontiguousarray(coarse_QP, np.float32)
    chosen = {} if selector is None else {"sel": selector}
    params = faiss.SearchParametersIVF(nprobe=lists_QP.shape[1], **chosen)
    given = [faiss.swig_ptr(array) for array in (queries_QD, lists_QP, coarse_QP, scores_QK, ordinals_QK)]
    core.search_preassigned_c(count, given[0], k, *given[1:], False, params)
    return scores_QK, ordinals_QK
