"""Whether a batch of queries is searched list by list (operators.index.list_order) or scanned query by query.

By list, each list, each query that looks into it and each of its vectors costs something besides, and each pair of
query and vector less, or more: that depends on the kind of codes, and on how many queries share a list.

Nanoseconds on one core, measured with 384 components on a CPU with AVX-512.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from operators.index.codes import has_plain_codes
from operators.index.library import faiss
from operators.index.snapshot import IndexSnapshot, Settings
from operators.index.spec import make_index, take_apart

_LIST, _LIST_QUERY, _LIST_VECTOR = 55_000, 0.5, 0.4  # by list: a list; a component of one of its queries, vectors
_PRODUCT, _SCORE = 0.018, 1.5  # a component of a pair; its score, which may be one of the best
_CANDIDATE = 180  # to be kept until the scan's end, and to be ranked by the finer store
_SKEW = 1.5  # vectors in the lists that queries look into, to those of a mean list


@dataclass(frozen=True, slots=True)
class ScanCost:
    """What it takes to scan an index's lists query by query."""

    dim: int
    num_lists: int
    query_ns: float  # tables for it
    list_ns: float  # tables for a query and a list
    vector_ns: float

    @staticmethod
    def of(core: Any) -> ScanCost:
        """The costs of an index with inverted lists, by its kind."""
        if isinstance(core, faiss.IndexIVFPQ):
            return ScanCost(core.d, core.nlist, 13 * core.d, 0, 0.31 * core.pq.M)
        if isinstance(core, (faiss.IndexIVFRaBitQ, faiss.IndexIVFRaBitQFastScan)):
            return ScanCost(core.d, core.nlist, 0, 6.5 * core.d, 0.02 * core.d)
        if isinstance(core, faiss.IndexIVFFastScan):
            return ScanCost(core.d, core.nlist, 13 * core.d, 0, 0.036 * core.M)
        return ScanCost(core.d, core.nlist, 0, 0, 0.1 * core.d)

    def prefers_lists(self, num_queries: int, probes: int, num_vectors: float, candidates: int = 0) -> bool:
        """Whether so many queries are answered sooner list by list, by a shard of so many vectors.

        `candidates` of each query would be ranked by a finer store, if they were not.
        """
        if num_queries * probes < self.num_lists:
            return False
        vectors = num_vectors / self.num_lists
        pairs = probes * vectors * _SKEW
        lists = min(self.num_lists, num_queries * probes) / num_queries
        scanned = self.query_ns + probes * self.list_ns + pairs * self.vector_ns + candidates * _CANDIDATE
        by_list = (
            pairs * (_PRODUCT * self.dim + _SCORE)
            + probes * _LIST_QUERY * self.dim
            + lists * (_LIST + vectors * _LIST_VECTOR * self.dim)
        )
        return by_list < scanned


def suits(core: Any, num_queries: int, probes: int) -> bool:
    """Whether searching a shard by list, by its own codes, wins for so many queries."""
    return has_plain_codes(core) and ScanCost.of(core).prefers_lists(num_queries, probes, core.ntotal)


@dataclass(frozen=True, slots=True)
class FinerStore:
    """How the candidates of an index's small codes are ranked, as far as it is known before its shards are open."""

    cost: ScanCost | None  # None: there are no inverted lists, or all candidates are to be found by the small codes
    shard_vectors: float  # in the mean

    def compares_all(self, num_queries: int, candidates: int, settings: Settings) -> bool:
        """Whether so many queries are compared by the finer store with all vectors of their lists.

        They find no less than with candidates by the small codes, and the same for any number of shards.
        """
        if self.cost is None:
            return False
        return self.cost.prefers_lists(num_queries, settings.nprobe, self.shard_vectors, candidates)

    def by_candidates(self) -> FinerStore:
        """The same for queries that settings are chosen by: they find what a single one does, however many they are."""
        return replace(self, cost=None)


def finer_store(snapshot: IndexSnapshot) -> FinerStore | None:
    """The second, finer store of an index; None where it has none."""
    identity = snapshot.identity
    if not identity.dim or identity.spec.is_binary:
        return None
    parts = take_apart(make_index(identity.spec))
    if parts.refine is None:
        return None
    cost = ScanCost.of(parts.core) if parts.is_ivf else None
    return FinerStore(cost, sum(shard.rows for shard in snapshot.shards) / max(1, len(snapshot.shards)))
