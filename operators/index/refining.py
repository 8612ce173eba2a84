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
from operators.index.scanning import prepare_scan, search_lists
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
        vectors_ND = flat_codes(store).view(np.float32)
        return _with_worst(_best_by_place(is_product, queries_QD, vectors_ND, places_QC, k), is_product)
    has_lists = isinstance(store, faiss.IndexScalarQuantizer) and len(flat_F) > _FEW
    search = _best_of_codes if has_lists else _best_of_decoded
    at_once = max(1, _GATHERED_BYTES * faiss.omp_get_max_threads() // store.sa_code_size())
    return _with_worst(search(store, is_product, queries_QD, flat_F, counts_Q, k, at_once), is_product)


def _with_worst(best: Best, is_product: bool) -> Best:
    """Infinity as the score of what is not there; faiss has the largest number of all."""
    best[0][best[1] < 0] = -np.inf if is_product else np.inf
    return best


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
    store: Any,
    is_product: bool,
    queries_QD: Vectors,
    flat_F: NDArray[np.int64],
    counts_Q: NDArray[np.int64],
    k: int,
    at_once: int,
) -> Best:
    """By decoding candidates, so many at once."""
    scores_QK, ordinals_QK = _nothing(is_product, len(queries_QD), k)
    for rows, some in _parts(counts_Q, at_once):
        vectors_FD = decode(store, np.take(flat_codes(store), flat_F[some], axis=0))
        places_QC = _padded(np.arange(len(vectors_FD)), counts_Q[rows])
        scores_QK[rows], places_QK = _best_by_place(is_product, queries_QD[rows], vectors_FD, places_QC, k)
        if len(vectors_FD):
            ordinals_QK[rows] = np.where(places_QK >= 0, flat_F[some].take(places_QK, mode="clip"), -1)
    return scores_QK, ordinals_QK


def _nothing(is_product: bool, num_queries: int, k: int) -> Best:
    worst = -np.inf if is_product else np.inf
    return np.full((num_queries, k), worst, np.float32), np.full((num_queries, k), -1, np.int64)


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
    store: Any,
    is_product: bool,
    queries_QD: Vectors,
    flat_F: NDArray[np.int64],
    counts_Q: NDArray[np.int64],
    k: int,
    at_once: int,
) -> Best:
    """By faiss's own comparison of queries with codes, so many candidates at once, which does not decode them.

    faiss has that for inverted lists, and of all kinds of lists those "on disk" alone take memory as it is: a list is
    an offset into it, and its ids stand `capacity` codes further on. So the codes of each query's candidates become a
    list, and all lists share ids, which are places in a list.
    """
    parts, size = list(_parts(counts_Q, at_once)), store.sa_code_size()
    most = max(some.stop - some.start for _, some in parts)
    room, longest = -(-most // 8) * 8, int(counts_Q.max(initial=0))  # ids begin at a multiple of 8 bytes
    memory = np.empty(room * size + 8 * longest, np.uint8)
    memory[room * size :].view(np.int64)[:] = np.arange(longest)
    lists, table_L3 = _lists_in(memory, size, max(rows.stop - rows.start for rows, _ in parts))
    metric = faiss.METRIC_INNER_PRODUCT if is_product else faiss.METRIC_L2
    none = faiss.IndexFlat(store.d, metric)  # a name: faiss holds no reference
    searched = faiss.IndexIVFScalarQuantizer(none, store.d, len(table_L3), store.sq.qtype, metric, False)
    searched.sq, searched.is_trained = store.sq, True
    prepare_scan(searched)
    searched.replace_invlists(lists, False)
    scores_QK, ordinals_QK = _nothing(is_product, len(queries_QD), k)
    own_Q1, zeros_Q1 = np.arange(len(table_L3))[:, None], np.zeros((len(table_L3), 1), np.float32)
    try:
        for rows, some in parts:
            part_F, counts = flat_F[some], counts_Q[rows]
            np.take(flat_codes(store), part_F, axis=0, out=memory[: len(part_F) * size].reshape(-1, size), mode="clip")
            starts = np.cumsum(counts) - counts
            table_L3[: len(counts)] = np.stack([counts, room - starts, starts * size], axis=1)
            found = search_lists(searched, queries_QD[rows], own_Q1[: len(counts)], zeros_Q1[: len(counts)], k)
            scores_QK[rows], places_QK = found
            if len(part_F):
                ordinals = part_F.take(places_QK + starts[:, None], mode="clip")
                ordinals_QK[rows] = np.where(places_QK >= 0, ordinals, -1)
    finally:
        lists.ptr = None  # else they would unmap it
    return scores_QK, ordinals_QK


def _lists_in(memory: NDArray[np.uint8], code_size: int, count: int) -> tuple[Any, NDArray[np.uint64]]:
    """So many inverted lists in memory that stays the caller's, and their table: size, capacity, offset of each."""
    lists = faiss.OnDiskInvertedLists()
    lists.nlist, lists.code_size = count, code_size
    lists.lists.resize(count)
    lists.ptr = faiss.swig_ptr(memory)
    fields = (c_size_t * (3 * count)).from_address(int(lists.lists.data().this))
    return lists, np.ctypeslib.as_array(fields).reshape(count, 3)
