"""Whether a batch of queries is searched list by list (operators.index.list_order) or scanned query by query.

The first costs something for each list, each query that looks into it and each of its vectors, and less for each pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from operators.index.codes import has_plain_codes
from operators.index.library import faiss
from operators.index.snapshot import IndexSnapshot, Settings
from operators.index.spec import make_index, take_apart

# Nanoseconds, measured at 384 components on one core (AVX-512; with AVX2 all of them grow alike).
_LIST, _QUERY, _VECTOR, _SCORE = 40_000, 200, 150, 0.6
_PRODUCT = 0.018  # a component of a pair, in a matrix product
_SCALAR, _TABLE, _BITS = 0.1, 0.36, 0.05  # a component of scalar codes, a look-up in a PQ's table, a bit of RaBitQ


@dataclass(frozen=True, slots=True)
class ScanCost:
    """What comparing a query with one vector of a list takes, both ways."""

    dim: int
    num_lists: int
    scan_ns: float

    @staticmethod
    def of(core: Any) -> ScanCost:
        """The costs of an index with inverted lists, by its kind."""
        if isinstance(core, faiss.IndexIVFPQ):
            return ScanCost(core.d, core.nlist, _TABLE * core.pq.M)
        if isinstance(core, (faiss.IndexIVFRaBitQ, faiss.IndexIVFRaBitQFastScan)):
            return ScanCost(core.d, core.nlist, _BITS * core.d)
        if isinstance(core, faiss.IndexIVFFastScan):
            return ScanCost(core.d, core.nlist, 0.0)  # as fast as the products
        return ScanCost(core.d, core.nlist, _SCALAR * core.d)

    def prefers_lists(self, num_queries: int, probes: int, num_vectors: float) -> bool:
        """Whether so many queries are answered sooner list by list, by a shard of so many vectors."""
        queries, vectors = num_queries * probes / self.num_lists, num_vectors / self.num_lists
        saved = queries * vectors * (self.scan_ns - _PRODUCT * self.dim - _SCORE)
        return saved > _LIST + (queries * _QUERY + vectors * _VECTOR) * self.dim / 384


def suits(core: Any, num_queries: int, probes: int) -> bool:
    """Whether searching a shard by list, by its own codes, wins for so many queries."""
    return has_plain_codes(core) and ScanCost.of(core).prefers_lists(num_queries, probes, core.ntotal)


@dataclass(frozen=True, slots=True)
class FinerStore:
    """How the candidates of an index's small codes are ranked, as far as it is known before its shards are open."""

    cost: ScanCost | None  # None: there are no inverted lists, or all candidates are always found by the small codes
    shard_vectors: float  # in the mean

    def compares_all(self, num_queries: int, settings: Settings) -> bool:
        """Whether all vectors of the lists of so many queries are compared by the finer store.

        What is found is a little better than with candidates by the small codes, and the same for any number of shards.
        """
        return self.cost is not None and self.cost.prefers_lists(num_queries, settings.nprobe, self.shard_vectors)

    def by_candidates(self) -> FinerStore:
        """The same for queries that must find what a single one finds, however many they are: those that settings are
        chosen by."""
        return replace(self, cost=None)


def finer_store(snapshot: IndexSnapshot) -> FinerStore | None:
    """The second, finer store of an index; None where it has none."""
    identity = snapshot.identity
    if not identity.dim or identity.spec.is_binary:
        return None
    parts = take_apart(make_index(identity.spec))
    if parts.refine is None:
        return None
    return FinerStore(
        ScanCost.of(parts.core) if parts.is_ivf else None,
        sum(shard.rows for shard in snapshot.shards) / max(1, len(snapshot.shards)),
    )
