"""The best of each query's candidates by a finer store.

Shapes: Q queries of D components, C candidates, K results, F candidates of all queries together, B bytes a code.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_size_t
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.index.codes import decode, flat_codes
from operators.index.library import faiss
from operators.index.scanning import search_lists
from operators.index.vectors import Vectors

_GATHERED_BYTES = 2 << 20  # codes at once: they should stay in the CPU's cache between being gathered and compared
_FEW = 512  # candidates that are decoded sooner than lists are made of them (60 us)

Best = tuple[NDArray[np.float32], NDArray[np.int64]]


def best_candidates(store: Any, is_product: bool, queries_QD: Vectors, ordinals_QC: NDArray[np.int64], k: int) -> Best:
    """The k best candidates by the store's scores, best first: scores and ordinals [Q, k], -1 where there are fewer.

    A candidate of -1 is none.
    """
    queries_QD = np.ascontiguousarray(queries_QD, np.float32)
    present_QC = ordinals_QC >= 0
    counts_Q = present_QC.sum(axis=1)
    flat_F = ordinals_QC[present_QC]
    if isinstance(store, faiss.IndexFlat):  # no decoding: its codes are the vectors
        has_gaps = (present_QC[:, 1:] > present_QC[:, :-1]).any()
        places_QC = _padded(flat_F, counts_Q) if has_gaps else np.ascontiguousarray(ordinals_QC)
        return _best_by_place(is_product, queries_QD, flat_codes(store).view(np.float32), places_QC, k)
    has_lists = isinstance(store, faiss.IndexScalarQuantizer) and len(flat_F) > _FEW
    best = _best_of_codes if has_lists else _best_of_decoded
    parts = []
    for rows, some in _parts(counts_Q, max(1, _GATHERED_BYTES * faiss.omp_get_max_threads() // store.sa_code_size())):
        scores_QK, places_QK = best(store, is_product, queries_QD[rows], flat_F[some], counts_Q[rows], k)
        parts.append((scores_QK, np.where(places_QK >= 0, flat_F[some].take(places_QK, mode="clip"), -1)))
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([ordinals for _, ordinals in parts])


def _parts(counts_Q: NDArray[np.int64], at_once: int) -> Iterator[tuple[slice, slice]]:
    """Runs of queries, one at least, that have so many candidates together, and where those stand among all."""
    ends_Q, row = np.cumsum(counts_Q), 0
    while row < len(counts_Q):
        begin = int(ends_Q[row] - counts_Q[row])
        end = max(row + 1, int(np.searchsorted(ends_Q, begin + at_once, side="right")))
        yield slice(row, end), slice(begin, int(ends_Q[end - 1]))
        row = end


def _padded(flat_F: NDArray[np.int64], counts_Q: NDArray[np.int64]) -> NDArray[np.int64]:
    """One query's candidates a row, from its beginning, -1 behind them."""
    places_QC = np.arange(max(1, counts_Q.max(initial=0)))
    padded_QC = np.full((len(counts_Q), len(places_QC)), -1, np.int64)
    padded_QC[places_QC < counts_Q[:, None]] = flat_F
    return padded_QC


def _best_of_decoded(
    store: Any, is_product: bool, queries_QD: Vectors, flat_F: NDArray[np.int64], counts_Q: NDArray[np.int64], k: int
) -> Best:
    """The same by decoding them; what comes back are places among the candidates."""
    vectors_FD = decode(store, np.take(flat_codes(store), flat_F, axis=0))
    return _best_by_place(is_product, queries_QD, vectors_FD, _padded(np.arange(len(flat_F)), counts_Q), k)


def _best_by_place(
    is_product: bool, queries_QD: Vectors, vectors_ND: NDArray[np.float32], places_QC: NDArray[np.int64], k: int
) -> Best:
    num_queries, width = places_QC.shape
    scores_QK, places_QK = np.empty((num_queries, k), np.float32), np.empty((num_queries, k), np.int64)
    search = faiss.knn_inner_products_by_idx if is_product else faiss.knn_L2sqr_by_idx
    search(
        *(faiss.swig_ptr(array) for array in (queries_QD, vectors_ND, places_QC)),
        queries_QD.shape[1],
        num_queries,
        len(vectors_ND),
        width,
        k,
        faiss.swig_ptr(scores_QK),
        faiss.swig_ptr(places_QK),
        width,  # its default is another than it says
    )
    return scores_QK, places_QK


def _best_of_codes(
    store: Any, is_product: bool, queries_QD: Vectors, flat_F: NDArray[np.int64], counts_Q: NDArray[np.int64], k: int
) -> Best:
    """The same without decoding, by faiss's own comparison with codes, whose result the rounding too is that of.

    faiss compares queries with codes in inverted lists, and of all kinds of lists those "on disk" alone take memory as
    it is: a list is an offset into it, and its ids stand `capacity` codes further on. So each query gets the codes of
    its candidates as a list, and all lists share ids that are places in it.
    """
    num_queries, size = len(counts_Q), store.sa_code_size()
    room, longest = -(-len(flat_F) // 8) * 8, int(counts_Q.max(initial=0))  # ids begin at a multiple of 8 bytes
    memory = np.empty(room * size + 8 * longest, np.uint8)
    np.take(flat_codes(store), flat_F, axis=0, out=memory[: len(flat_F) * size].reshape(-1, size), mode="clip")
    memory[room * size :].view(np.int64)[:] = np.arange(longest)
    starts_Q = np.cumsum(counts_Q) - counts_Q
    lists = _lists_in(memory, size, np.stack([counts_Q, room - starts_Q, starts_Q * size], axis=1))
    metric = faiss.METRIC_INNER_PRODUCT if is_product else faiss.METRIC_L2
    none = faiss.IndexFlat(store.d, metric)  # a name: faiss holds no reference
    searched = faiss.IndexIVFScalarQuantizer(none, store.d, num_queries, store.sq.qtype, metric, False)
    searched.sq, searched.is_trained, searched.parallel_mode = store.sq, True, 3  # 3: over queries
    searched.replace_invlists(lists, False)
    try:
        own_Q1, zeros_Q1 = np.arange(num_queries)[:, None], np.zeros((num_queries, 1), np.float32)
        scores_QK, places_QK = search_lists(searched, queries_QD, own_Q1, zeros_Q1, k)
    finally:
        lists.ptr = None  # else they would unmap it
    return scores_QK, np.where(places_QK >= 0, places_QK + starts_Q[:, None], -1)


def _lists_in(memory: NDArray[np.uint8], code_size: int, table_L3: NDArray[np.int64]) -> Any:
    """Inverted lists in memory that stays the caller's; a row of the table is size, capacity, offset of one."""
    lists = faiss.OnDiskInvertedLists()
    lists.nlist, lists.code_size = len(table_L3), code_size
    lists.lists.resize(len(table_L3))
    fields = (c_size_t * table_L3.size).from_address(int(lists.lists.data().this))
    np.ctypeslib.as_array(fields)[:] = table_L3.reshape(-1)
    lists.ptr = faiss.swig_ptr(memory)
    return lists
