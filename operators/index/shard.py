"""The dense vectors of a shard, opened for search.

Shapes: Q queries of D components, K results, C candidates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.index.library import faiss
from operators.index.list_order import search_by_list, suits
from operators.index.snapshot import Settings, ShardRecord
from operators.index.spec import Parts, take_apart
from operators.index.trained import Prepared, Trained, check_same_training, read_faiss
from operators.index.vectors import Vectors

Mask = NDArray[np.bool_]
_DECODED_AT_ONCE = 1 << 11  # vectors of the refine store; as floats they should stay in the CPU's cache


class Shard:
    """A shard's codes, mapped from `file`."""

    def __init__(self, trained: Trained, record: ShardRecord, file: Path) -> None:
        check_same_training(trained.sha256, record.trained_sha256, f"shard {record.key}")
        self.record = record
        self._trained, self._spec, self._file = trained, trained.spec, file
        self._index = read_faiss(file, trained.spec, mmap=True)
        self.parts = Parts((), self._index, None, self._index) if trained.spec.is_binary else take_apart(self._index)
        self._quantizer: Any = None
        if self.parts.is_ivf:
            self._attach_centroids()
        if self._index.ntotal != record.rows:
            raise InputError(
                f"build the index again: shard {record.key} has {self._index.ntotal} vectors, its record says "
                f"{record.rows}"
            )
        self._without: tuple[bytes, Any, NDArray[np.int64] | None] | None = None

    def _attach_centroids(self) -> None:
        core, shared = self.parts.core, self._trained.parts.core.quantizer
        if core.quantizer.ntotal == 0:
            core.own_fields = False  # the quantizer belongs to the trained index
            core.quantizer = shared
        self._quantizer = faiss.downcast_index(core.quantizer)

    def candidates(
        self, queries: Prepared, k: int, settings: Settings, mask: Mask | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best by the shard's codes, best first: scores and ordinals [Q, k], -1 where there are fewer.

        `mask` says which ordinals may be found (None: all).
        """
        core = self.parts.core
        if not self.record.rows or (mask is not None and not mask.any()):
            return self._none(len(queries.core_QD), k)
        if self.parts.is_ivf:
            assert queries.lists_QP is not None, "an index with inverted lists prepares them"
            if self.record.lists is not None:
                return self._routed(queries, k, mask)
            if suits(core, len(queries.core_QD), queries.lists_QP.shape[1]):
                return search_by_list(core, self._quantizer, queries, k, mask)
            return _search_lists(core, queries, k, _selector(mask))
        index, back = self._selecting(mask)
        params = self._params(index, settings, mask if back is None else None)
        found = index.search(queries.core_QD, k, params=params) if params else index.search(queries.core_QD, k)
        scores_QK, ordinals_QK = found[0].astype(np.float32), found[1]
        if back is not None:
            ordinals_QK = np.where(ordinals_QK >= 0, back[np.maximum(ordinals_QK, 0)], -1)
        scores_QK[ordinals_QK < 0] = -np.inf if self._spec.larger_is_better else np.inf
        return scores_QK, ordinals_QK

    def _routed(self, queries: Prepared, k: int, mask: Mask | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search those queries that look into lists of this shard; the others find nothing here."""
        assert queries.lists_QP is not None, "an index with inverted lists prepares them"
        assert queries.coarse_QP is not None, "as above"
        assert self.record.lists is not None, "a shard by list"
        first, end = self.record.lists
        rows = np.flatnonzero(((queries.lists_QP >= first) & (queries.lists_QP < end)).any(axis=1))
        scores_QK, ordinals_QK = self._none(len(queries.core_QD), k)
        if len(rows):
            mine = Prepared(
                queries.original_QD[rows], queries.core_QD[rows], queries.lists_QP[rows], queries.coarse_QP[rows]
            )
            by_list = suits(self.parts.core, len(queries.core_QD), queries.lists_QP.shape[1])
            found = (
                search_by_list(self.parts.core, self._quantizer, mine, k, mask)
                if by_list
                else _search_lists(self.parts.core, mine, k, _selector(mask))
            )
            scores_QK[rows], ordinals_QK[rows] = found
        return scores_QK, ordinals_QK

    def scanned(self, queries: Prepared, settings: Settings) -> float:
        """Vectors that a query is compared with, in the mean; for graphs the candidates that are kept."""
        core = self.parts.core
        if queries.lists_QP is not None:
            sizes = np.array([core.invlists.list_size(i) for i in range(core.nlist)])
            return float(sizes[queries.lists_QP].sum() / max(1, len(queries.lists_QP)))
        if isinstance(core, faiss.IndexBinaryIVF):
            return float(self.record.rows * min(1.0, settings.nprobe / core.nlist))
        is_graph = isinstance(core, (faiss.IndexHNSW, faiss.IndexBinaryHNSW))
        return float(min(self.record.rows, settings.ef) if is_graph else self.record.rows)

    def rescore(self, queries_QD: Vectors, ordinals_QC: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of these vectors by the finer store, in the order given; only where an ordinal is not -1."""
        refine = self.parts.refine
        assert refine is not None, "only an index with a refine store has finer scores"
        num_queries, count = ordinals_QC.shape
        scores_QC = np.empty(ordinals_QC.shape, np.float32)
        rows, codes = max(1, _DECODED_AT_ONCE // count), _codes(refine)
        if isinstance(refine, faiss.IndexFlat):  # no decoding: its codes are the vectors
            return _score_by_place(self._spec.larger_is_better, queries_QD, codes.view(np.float32), ordinals_QC)
        for start in range(0, num_queries, rows):
            part = ordinals_QC[start : start + rows]
            present = part >= 0
            decoded = _decoded(refine, np.take(codes, part[present], axis=0))
            places = np.full(part.shape, -1, np.int64)
            places[present] = np.arange(len(decoded))
            scores_QC[start : start + rows] = _score_by_place(
                self._spec.larger_is_better, queries_QD[start : start + rows], decoded, places
            )
        return scores_QC

    def _none(self, num_queries: int, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        worst = -np.inf if self._spec.larger_is_better else np.inf
        return np.full((num_queries, k), worst, np.float32), np.full((num_queries, k), -1, np.int64)

    def _params(self, index: Any, settings: Settings, mask: Mask | None) -> Any:
        selector = _selector(mask)
        chosen = {} if selector is None else {"sel": selector}
        if isinstance(index, (faiss.IndexHNSW, faiss.IndexBinaryHNSW)):
            return faiss.SearchParametersHNSW(efSearch=settings.ef, **chosen)
        if isinstance(index, faiss.IndexBinaryIVF):
            index.nprobe = max(1, min(settings.nprobe, index.nlist))  # it takes no parameters per call
            return None
        return faiss.SearchParameters(**chosen) if chosen else None

    def _selecting(self, mask: Mask | None) -> tuple[Any, NDArray[np.int64] | None]:
        """The index to search under a mask, and the ordinals of its vectors where those are not its own numbers.

        Kinds that take no selector are searched in a copy without the masked rows; the last such copy is kept.
        """
        core = self.parts.core
        takes_none = isinstance(core, (faiss.IndexPQ, faiss.IndexFastScan, faiss.IndexBinaryIVF))
        if mask is None or not takes_none:
            return core, None
        packed = np.packbits(mask, bitorder="little")
        if self._without is None or self._without[0] != packed.tobytes():
            copy = read_faiss(self._file, self._spec, mmap=False)
            inner = copy if self._spec.is_binary else take_apart(copy).core
            inner.remove_ids(faiss.IDSelectorNot(_selector(mask)))
            keeps_ids = isinstance(inner, faiss.IndexBinaryIVF)
            self._without = (packed.tobytes(), (copy, inner), None if keeps_ids else np.flatnonzero(mask))
        (_, inner), back = self._without[1], self._without[2]
        return inner, np.arange(self.record.rows) if back is None else back


def _search_lists(core: Any, queries: Prepared, k: int, selector: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """faiss's own scan of the prepared lists; by the C++ function, since its Python wrapper takes no parameters."""
    assert queries.lists_QP is not None, "an index with inverted lists prepares them"
    count = len(queries.core_QD)
    scores_QK, ordinals_QK = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
    lists_QP = np.ascontiguousarray(queries.lists_QP, np.int64)
    coarse_QP = np.ascontiguousarray(queries.coarse_QP, np.float32)
    chosen = {} if selector is None else {"sel": selector}
    params = faiss.SearchParametersIVF(nprobe=lists_QP.shape[1], **chosen)
    pointer = faiss.swig_ptr
    core.search_preassigned_c(
        count,
        pointer(queries.core_QD),
        k,
        pointer(lists_QP),
        pointer(coarse_QP),
        pointer(scores_QK),
        pointer(ordinals_QK),
        False,
        params,
    )
    return scores_QK, ordinals_QK


def _selector(mask: Mask | None) -> Any:
    return None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def _codes(flat: Any) -> NDArray[np.uint8]:
    """All codes of a flat store as a view of its memory or mapping."""
    size = flat.sa_code_size()
    view: NDArray[np.uint8] = faiss.rev_swig_ptr(flat.codes.data(), flat.ntotal * size).reshape(-1, size)
    return view


def _decoded(flat: Any, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The vectors of a flat store's codes."""
    if not (isinstance(flat, faiss.IndexScalarQuantizer) and flat.sq.qtype == faiss.ScalarQuantizer.QT_fp16):
        vectors: NDArray[np.float32] = flat.sa_decode(codes)
        return vectors
    # A half's bits moved to a float's places, its exponent's bias mended by a product: 4 times as fast as sa_decode
    # (0.10 instead of 0.44 us for 384 components), and the same but for infinities.
    vectors = np.empty((len(codes), flat.d), np.float32)
    bits = vectors.view(np.uint32)
    bits[:] = codes.view(np.int16)
    np.left_shift(bits, 13, out=bits)
    bits &= np.uint32(0x8FFFE000)  # the sign, which came along to the left, and what was moved
    vectors *= np.float32(2.0**112)
    return vectors


def _score_by_place(
    is_product: bool, queries_QD: Vectors, vectors_PD: Vectors, places_QC: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Score of query q with vector places[q, c]; undefined where that is -1."""
    scores_QC = np.empty(places_QC.shape, np.float32)
    queries_QD, places_QC = np.ascontiguousarray(queries_QD, np.float32), np.ascontiguousarray(places_QC, np.int64)
    score = faiss.fvec_inner_products_by_idx if is_product else faiss.fvec_L2sqr_by_idx
    pointer = faiss.swig_ptr
    score(
        pointer(scores_QC),
        pointer(queries_QD),
        pointer(vectors_PD),
        pointer(places_QC),
        queries_QD.shape[1],
        *places_QC.shape,
    )
    return scores_QC
