"""Search of a graph (HNSW) under a mask: through the graph where many vectors are selected, exactly where few are.

Shapes: Q queries of D components, K results, S selected vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.index.codes import decode, flat_codes
from operators.index.library import faiss
from operators.index.spec import IndexSpec
from operators.index.truth import nearest
from operators.index.vectors import Vectors

Mask = NDArray[np.bool_]
Best = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores and ordinals [Q, K], best first, -1 where there are fewer

_COMPARED_PER_STEP = 32  # vectors that a step of a search compares in a graph of 16 or 32 links a vector
_DECODED_AT_ONCE = 16384


def search_graph(core: Any, spec: IndexSpec, queries_QD: Vectors, k: int, ef: int, mask: Mask | None) -> Best:
    """The k best by the graph's codes, of all or of those that `mask` selects.

    A search through the graph steps over what is not selected, so that it takes as many times more steps as there are
    vectors to a selected one. Where that compares more vectors than are selected, all selected ones are compared
    instead; and so they are with a query that found fewer than there are, as in a graph that is not connected.
    """
    selected = core.ntotal if mask is None else int(mask.sum())
    steps = int(np.ceil(ef * core.ntotal / max(1, selected)))
    if mask is not None and selected <= _COMPARED_PER_STEP * steps:
        return _all_selected(core, spec, queries_QD, k, np.flatnonzero(mask))
    chosen = {} if mask is None else {"sel": selector(mask)}
    found = core.search(queries_QD, k, params=faiss.SearchParametersHNSW(efSearch=steps, **chosen))
    scores_QK, ordinals_QK = found[0].astype(np.float32), found[1]
    scores_QK[ordinals_QK < 0] = -np.inf if spec.larger_is_better else np.inf
    short = np.flatnonzero((ordinals_QK >= 0).sum(axis=1) < min(k, selected))
    if len(short):
        rows_S = np.arange(core.ntotal) if mask is None else np.flatnonzero(mask)
        scores_QK[short], ordinals_QK[short] = _all_selected(core, spec, queries_QD[short], k, rows_S)
    return scores_QK, ordinals_QK


def selector(mask: Mask | None) -> Any:
    """A mask as faiss takes it; None selects all."""
    return None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def _all_selected(core: Any, spec: IndexSpec, queries_QD: Vectors, k: int, rows_S: NDArray[np.int64]) -> Best:
    """The k best of these rows, each compared with every query."""
    largest = spec.larger_is_better
    heap = faiss.ResultHeap(len(queries_QD), k, keep_max=largest)
    for start in range(0, len(rows_S), _DECODED_AT_ONCE):
        some_S = rows_S[start : start + _DECODED_AT_ONCE]
        vectors_SD = _stored(core, some_S)
        scores_QK, places_QK = nearest(queries_QD, vectors_SD, min(k, len(some_S)), spec.metric)
        heap.add_result(np.ascontiguousarray(scores_QK, np.float32), some_S[places_QK])
    heap.finalize()
    heap.D[heap.I < 0] = -np.inf if largest else np.inf
    return heap.D, heap.I


def _stored(core: Any, rows_S: NDArray[np.int64]) -> Vectors:
    if isinstance(core, faiss.IndexBinaryHNSW):
        store = faiss.downcast_IndexBinary(core.storage)
        codes: Vectors = faiss.vector_to_array(store.xb).reshape(store.ntotal, -1)[rows_S]
        return codes
    store = faiss.downcast_index(core.storage)
    return decode(store, flat_codes(store)[rows_S])
