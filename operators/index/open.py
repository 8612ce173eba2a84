"""An index folder, opened in this process: for notebooks, services and one-off questions. No Ray.

from operators.index import open_index
index = open_index("s3://bucket/index")
index.search(vectors, k=10)            # a table: query, rank, doc_id, chunk, score
index.search(vectors, sparse=matrix)   # hybrid, where the index has sparse vectors too
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from operators.embedder.sparse_vectors import SparseVectors
from operators.errors import InputError
from operators.index.fusion import Fusion, fuse
from operators.index.group import Found, ShardGroup, as_given, cut_after_ties, joined, settings_for, widened, with_ties
from operators.index.list_costs import finer_store
from operators.index.snapshot import IndexIdentity, IndexSnapshot, Settings, read_index
from operators.index.vectors import VECTORS_AT_ONCE, Vectors
from operators.storage import Location, locate
from operators.work.names import RESULTS

RESULT_COLUMNS = ("doc_id", "chunk")
RRF = Fusion()
_RANKED_AT_ONCE = 1024  # queries whose candidates are held at once: 1.4 MB of a hundred each


class Index:
    """A snapshot of an index with all its shards."""

    def __init__(
        self, location: Location, snapshot: IndexSnapshot, cache: str | None = None, threads: int | None = None
    ) -> None:
        self.location, self.snapshot = location, snapshot
        self._group = ShardGroup(location, snapshot, range(len(snapshot.shards)), cache, threads)
        self._finer = finer_store(snapshot)

    @property
    def identity(self) -> IndexIdentity:
        """Spec, metric, dimension and model."""
        return self.snapshot.identity

    @property
    def num_vectors(self) -> int:
        """Vectors that can be found."""
        return self.snapshot.num_vectors

    @property
    def columns(self) -> list[str]:
        """Columns that results and filters can have."""
        return self._group.columns

    @property
    def settings(self) -> Settings:
        """The settings that the index was tuned to."""
        return tuned_settings(self.snapshot)

    def search(
        self,
        vectors: Any = None,
        k: int = 10,
        filter: str | None = None,
        columns: Sequence[str] = (),
        settings: Settings | None = None,
        sparse: Any = None,
        fusion: Fusion | None = None,
    ) -> pa.Table:
        """The k nearest documents of each vector ([Q, D], or [D] for one), best first.

        `sparse` are sparse vectors of the same queries (`SparseVectors`, or a scipy matrix [Q, ids]): given alone, the
        search is sparse, given with `vectors`, it is hybrid, both rankings fused as `fusion` says.

        Returns query (0-based), rank (from 1), doc_id, chunk, score and `columns`; a query has fewer than k rows where
        so few vectors match. Vectors are fractional numbers, or codes as they are stored (`VectorSpace.queries`).
        Scores are cosines, inner products, squared distances or Hamming distances, by the
        index's metric; inner products for sparse vectors; and what the fusion makes of both. Raises InputError for
        vectors of another size, or not finite.
        """
        check_columns(columns, self.columns)
        queries_QD = None
        if vectors is not None:
            self._check_has(("dense", self.identity.dim))
            queries_QD = self.identity.space.queries(np.atleast_2d(np.asarray(vectors)), "the queries")
        asked = None
        if sparse is not None:
            self._check_has(("sparse", self.identity.sparse_dim))
            asked = sparse_queries(sparse, self.identity.sparse_dim)
        found = self.find_any(queries_QD, asked, k, settings or self.settings, filter, fusion or RRF)
        query, place = np.nonzero(found.ids_QK >= 0)
        places, table = self._group.look_up(found.ids_QK[query, place], [*RESULT_COLUMNS, *columns])
        table = table.take(pa.array(np.argsort(places)))
        return result_table(pa.array(query), "query", place, found.scores_QK[query, place], table)

    def find_any(
        self,
        queries_QD: Vectors | None,
        sparse: SparseVectors | None,
        k: int,
        settings: Settings,
        filter: str | None = None,
        fusion: Fusion = RRF,
    ) -> Found:
        """Scores and ids of the k best by what is given of the queries: dense, sparse, or both fused."""
        if queries_QD is None and sparse is None:
            raise InputError("give vectors, sparse vectors, or both, to search with")
        if sparse is None:
            assert queries_QD is not None, "one of them is there"
            return self.find(queries_QD, k, settings, filter)
        if k < 1:
            raise InputError(f"ask for at least one result: k is {k}")
        if queries_QD is None:
            return self._group.sparse_candidates(sparse, k, filter)
        if len(queries_QD) != len(sparse):
            raise InputError(f"give the same queries twice: {len(queries_QD)} are dense, {len(sparse)} sparse")
        depth = fusion.candidates(k)
        dense = self.find(queries_QD, depth, settings, filter)
        lexical = self._group.sparse_candidates(sparse, depth, filter)
        return fuse(dense, lexical, self.identity.spec.larger_is_better, fusion, k)

    def _check_has(self, side: tuple[str, int]) -> None:
        if not side[1]:
            raise InputError(f"search otherwise, or index again: {self.location.url} has no {side[0]} vectors")

    def find(self, queries_QD: Vectors, k: int, settings: Settings, filter: str | None = None) -> Found:
        """Scores and ids of the k nearest; `queries_QD` as `VectorSpace.prepared` returns them."""
        if k < 1:
            raise InputError(f"ask for at least one result: k is {k}")
        least = 0
        if filter is not None:
            selected = self._group.select(filter)
            least, settings = min(k, selected), settings_for(settings, selected, self.snapshot.num_vectors)
        parts = [
            widened(
                lambda some_QD, settings: self._find(some_QD, k, settings, filter),
                queries_QD[start : start + VECTORS_AT_ONCE],
                settings,
                least,
                self._group.num_lists,
            )
            for start in range(0, max(1, len(queries_QD)), VECTORS_AT_ONCE)
        ]
        return joined(parts)

    def _find(self, queries_QD: Vectors, k: int, settings: Settings, filter: str | None) -> Found:
        prepared = self._group.prepare(queries_QD, settings)
        if self._finer is None:
            return as_given(self._group.candidates(prepared, k, settings, filter), prepared.places_Q)
        wanted, largest = k * settings.k_factor, self.identity.spec.larger_is_better
        fetched = with_ties(wanted)
        if self._finer.compares_all(len(queries_QD), fetched, settings):
            return as_given(self._group.finest(prepared, k, filter), prepared.places_Q)
        parts = []
        for some in prepared.parts(_RANKED_AT_ONCE):
            candidates = cut_after_ties(self._group.candidates(some, fetched, settings, filter), wanted, largest)
            parts.append(self._group.refine(some, candidates.ids_QK, k))
        return as_given(joined(parts), prepared.places_Q)

    def find_document(self, doc_id: str, columns: Sequence[str]) -> pa.Table:
        """The vectors of a document: `columns` of the id maps, and the number of the shard of each."""
        found = self._group.find(doc_id)
        ids = np.array([(shard << 40) | row for shard, row in found], np.int64)
        places, table = self._group.look_up(ids, list(columns))
        shards = pa.array([found[int(i)][0] for i in places], pa.int64())
        return table.append_column("shard", shards)


def open_index(
    path: str,
    storage_options: Mapping[str, Any] | None = None,
    snapshot: int | None = None,
    cache: str | None = None,
    threads: int | None = None,
) -> Index:
    """Open an index folder, its newest snapshot or a named one, wherever it lies.

    Shards on this machine's disk are mapped where they are; others are fetched into the folder `cache` once. Every
    file's hash is checked before faiss reads it: InputError names the one that is damaged or gone.
    """
    location = locate(path, storage_options)
    return Index(location, read_index(location, snapshot), cache, threads)


def tuned_settings(snapshot: IndexSnapshot) -> Settings:
    """The settings that recall was measured for; faiss's own where it was not."""
    return snapshot.recall.chosen.settings if snapshot.recall is not None else Settings(nprobe=16, k_factor=8)


def sparse_queries(given: Any, num_ids: int) -> SparseVectors:
    """Sparse queries in the form that is searched; raises InputError where they are not sound."""
    if isinstance(given, SparseVectors):
        queries = given
    else:
        import scipy.sparse  # a quarter of a second, which dense searches need not pay

        matrix = scipy.sparse.csr_array(given)
        if matrix.shape[1] != num_ids:
            raise InputError(f"give sparse queries over {num_ids} ids: they have {matrix.shape[1]}")
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        lengths_Q = np.diff(matrix.indptr).astype(np.int64)
        queries = SparseVectors(lengths_Q, matrix.indices.astype(np.int32), matrix.data.astype(np.float32))
    faults = queries.faults(num_ids)
    if faults:
        raise InputError(f"mend the sparse queries: {faults[0]}")
    return queries


def check_columns(columns: Sequence[str], there: Sequence[str]) -> None:
    """Raise InputError for a column that the id maps do not have."""
    for name in columns:
        if name in RESULTS:
            raise InputError(f"take {name!r} out of columns: results have a column of that name of their own")
        if name not in there:
            raise InputError(f"choose other columns: the index has no {name!r}, it has {', '.join(there)}")


def result_table(query: pa.Array, query_name: str, place: Any, scores: Any, found: pa.Table) -> pa.Table:
    """The rows of a result: query, rank from 1, doc_id, chunk, score, further columns."""
    more = {name: found[name] for name in found.column_names if name not in RESULT_COLUMNS}
    return pa.table(
        {
            query_name: query,
            "rank": pa.array(place + 1, pa.int32()),
            "doc_id": found["doc_id"],
            "chunk": found["chunk"],
            "score": pa.array(scores, pa.float32()),
            **more,
        }
    )
