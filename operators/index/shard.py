"""The dense vectors of a shard, opened for search.

Shapes: Q queries of D components, K results, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.index.graphs import Best, Mask, search_graph, selector
from operators.index.library import faiss
from operators.index.list_costs import suits
from operators.index.list_order import search_by_list
from operators.index.refining import best_candidates
from operators.index.scanning import prepare_scan, scan
from operators.index.snapshot import Settings, ShardRecord
from operators.index.spec import Parts, take_apart
from operators.index.trained import Prepared, Trained, check_same_training, read_faiss
from operators.index.vectors import Vectors


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
        prepare_scan(core)

    def candidates(self, queries: Prepared, k: int, settings: Settings, mask: Mask | None) -> Best:
        """The k best by the shard's codes, best first: scores and ordinals [Q, k], -1 where there are fewer.

        `mask` says which ordinals may be found (None: all).
        """
        core = self.parts.core
        if not self.record.rows or (mask is not None and not mask.any()):
            return self._none(len(queries.core_QD), k)
        if self.parts.is_ivf:
            assert queries.lists_QP is not None, "an index with inverted lists prepares them"
            by_list = suits(core, len(queries.core_QD), queries.lists_QP.shape[1])
            return self._of_lists(queries, k, mask, self._by_list if by_list else self._scanned)
        if isinstance(core, (faiss.IndexHNSW, faiss.IndexBinaryHNSW)):
            return search_graph(core, self._spec, queries.core_QD, k, settings.ef, mask)
        index, back = self._selecting(mask)
        params = self._params(index, settings, mask if back is None else None)
        found = index.search(queries.core_QD, k, params=params) if params else index.search(queries.core_QD, k)
        scores_QK, ordinals_QK = found[0].astype(np.float32), found[1]
        if back is not None:
            ordinals_QK = np.where(ordinals_QK >= 0, back[np.maximum(ordinals_QK, 0)], -1)
        scores_QK[ordinals_QK < 0] = -np.inf if self._spec.larger_is_better else np.inf
        return scores_QK, ordinals_QK

    def finest(self, queries: Prepared, k: int, mask: Mask | None) -> Best:
        """The k best of all vectors in the queries' lists by the finer store, as if all of them were candidates."""
        assert self.parts.refine is not None, "only an index with a refine store has finer scores"
        if not self.record.rows or (mask is not None and not mask.any()):
            return self._none(len(queries.core_QD), k)
        return self._of_lists(queries, k, mask, self._finer_by_list)

    def _of_lists(
        self, queries: Prepared, k: int, mask: Mask | None, search: Callable[[Prepared, int, Mask | None], Best]
    ) -> Best:
        """Search with those queries that look into lists of this shard; the others find nothing here."""
        if self.record.lists is None:
            return search(queries, k, mask)
        assert queries.lists_QP is not None, "an index with inverted lists prepares them"
        first, end = self.record.lists
        rows = np.flatnonzero(((queries.lists_QP >= first) & (queries.lists_QP < end)).any(axis=1))
        scores_QK, ordinals_QK = self._none(len(queries.core_QD), k)
        if len(rows):
            scores_QK[rows], ordinals_QK[rows] = search(queries.take(rows), k, mask)
        return scores_QK, ordinals_QK

    def _by_list(self, queries: Prepared, k: int, mask: Mask | None) -> Best:
        return search_by_list(self.parts.core, None, self._quantizer, queries, k, mask)

    def _finer_by_list(self, queries: Prepared, k: int, mask: Mask | None) -> Best:
        return search_by_list(self.parts.core, self.parts.refine, self._quantizer, queries, k, mask)

    def _scanned(self, queries: Prepared, k: int, mask: Mask | None) -> Best:
        return scan(self.parts.core, queries, k, selector(mask))

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

    def refine(self, queries_QD: Vectors, ordinals_QC: NDArray[np.int64], k: int) -> Best:
        """The k best of these vectors by the finer store, best first; an ordinal of -1 is none."""
        assert self.parts.refine is not None, "only an index with a refine store has finer scores"
        return best_candidates(self.parts.refine, self._spec.larger_is_better, queries_QD, ordinals_QC, k)

    def _none(self, num_queries: int, k: int) -> Best:
        worst = -np.inf if self._spec.larger_is_better else np.inf
        return np.full((num_queries, k), worst, np.float32), np.full((num_queries, k), -1, np.int64)

    def _params(self, index: Any, settings: Settings, mask: Mask | None) -> Any:
        chosen = {} if mask is None else {"sel": selector(mask)}
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
            inner.remove_ids(faiss.IDSelectorNot(selector(mask)))
            keeps_ids = isinstance(inner, faiss.IndexBinaryIVF)
            self._without = (packed.tobytes(), (copy, inner), None if keeps_ids else np.flatnonzero(mask))
        (_, inner), back = self._without[1], self._without[2]
        return inner, np.arange(self.record.rows) if back is None else back
