"""Exact neighbours of held-out queries, found block by block while a shard is built (its vectors are decoded anyway).

Shapes: Q queries, K neighbours kept of each, best first. More neighbours are kept than recall is measured at, so that
after some deletions the first of them are still exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.embedder.recipe.fingerprint import mapping_digest
from operators.index.library import faiss
from operators.index.spec import Metric
from operators.index.vectors import Vectors
from operators.storage import Location, read_bytes, write_whole

DEPTH_PER_K = 3


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Queries to measure with; where they were drawn from the documents, each knows its own."""

    vectors_QD: Vectors
    ids: pa.Table | None  # doc_id, chunk of the document that a query is; None for real queries
    source: str  # in words, for the report
    k: int
    digest: str

    @staticmethod
    def of(vectors_QD: Vectors, ids: pa.Table | None, source: str, k: int) -> HeldOut:
        """Held-out queries with the digest that names them."""
        content = hashlib.blake2b(np.ascontiguousarray(vectors_QD).tobytes(), digest_size=16).hexdigest()
        facts = {"k": k, "source": source, "shape": list(vectors_QD.shape), "content": content}
        return HeldOut(vectors_QD, ids, source, k, mapping_digest(facts)[:12])

    @property
    def depth(self) -> int:
        """Neighbours kept of each query in each shard."""
        return DEPTH_PER_K * self.k + 1


@dataclass(frozen=True, slots=True)
class Truth:
    """The exact nearest vectors of a shard; -1 where it has no more."""

    scores_QK: NDArray[np.float32]
    ordinals_QK: NDArray[np.int64]
    own_Q: NDArray[np.int64]  # the vector that a query itself is; -1 where it is none of this shard


class TruthCollector:
    """Collects a shard's exact neighbours while its blocks pass by."""

    def __init__(self, queries: HeldOut, metric: Metric) -> None:
        self._queries, self._metric = queries, metric
        self._largest = metric in ("cosine", "ip")
        self._heap = faiss.ResultHeap(len(queries.vectors_QD), queries.depth, keep_max=self._largest)
        self._self_of: dict[int, int] = {}  # ordinal -> the query that it is

    def add(self, vectors_ND: Vectors, ids: pa.Table, first_ordinal: int) -> None:
        """Compare all queries with a block of vectors."""
        if not len(vectors_ND) or not len(self._queries.vectors_QD):
            return
        k = min(self._queries.depth, len(vectors_ND))
        scores_QK, places_QK = nearest(self._queries.vectors_QD, vectors_ND, k, self._metric)
        self._heap.add_result(
            np.ascontiguousarray(scores_QK, np.float32), np.ascontiguousarray(places_QK + first_ordinal, np.int64)
        )
        for row, query in _own_rows(ids, self._queries.ids):
            self._self_of[first_ordinal + row] = query

    def finish(self) -> Truth:
        """The neighbours, without the documents that the queries themselves are."""
        self._heap.finalize()
        scores_QK, ordinals_QK = self._heap.D, self._heap.I
        own_Q = np.full(len(ordinals_QK), -1, np.int64)
        for ordinal, query in self._self_of.items():
            own_Q[query] = ordinal
            ordinals_QK[query][ordinals_QK[query] == ordinal] = -1
        worst = -np.inf if self._largest else np.inf
        scores_QK = np.where(ordinals_QK >= 0, scores_QK, worst).astype(np.float32)
        order = np.argsort(-scores_QK if self._largest else scores_QK, axis=1, kind="stable")
        return Truth(np.take_along_axis(scores_QK, order, 1), np.take_along_axis(ordinals_QK, order, 1), own_Q)


def nearest(queries_QD: Vectors, vectors_ND: Vectors, k: int, metric: Metric) -> tuple[Any, Any]:
    """The k nearest of a block by exact comparison: scores and places, best first."""
    if metric == "hamming":
        return faiss.knn_hamming(queries_QD, vectors_ND, k)  # type: ignore[no-any-return]  # faiss has no types
    return faiss.knn(  # type: ignore[no-any-return]  # as above
        queries_QD, vectors_ND, k, faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    )


def _own_rows(ids: pa.Table, own: pa.Table | None) -> list[tuple[int, int]]:
    """(row, query) where a row of the block is the document that a query was drawn from."""
    if own is None:
        return []
    rows = np.flatnonzero(pc.is_in(ids["doc_id"], own["doc_id"].combine_chunks()).to_numpy(zero_copy_only=False))
    if not len(rows):
        return []
    queries = {key: query for query, key in enumerate(zip(*own.to_pydict().values(), strict=True))}
    found = ids.take(pa.array(rows)).select(["doc_id", "chunk"]).to_pydict()
    keys = zip(rows.tolist(), zip(found["doc_id"], found["chunk"], strict=True), strict=True)
    return [(row, queries[key]) for row, key in keys if key in queries]


def store_truth(location: Location, truth: Truth) -> None:
    """Keep a shard's neighbours."""
    sink = pa.BufferOutputStream()
    width = truth.scores_QK.shape[1]
    columns = {
        "scores": pa.FixedSizeListArray.from_arrays(pa.array(truth.scores_QK.reshape(-1)), width),
        "ordinals": pa.FixedSizeListArray.from_arrays(pa.array(truth.ordinals_QK.reshape(-1)), width),
        "own": pa.array(truth.own_Q),
    }
    pq.write_table(pa.table(columns), sink, compression="zstd", write_page_checksum=True)
    write_whole(location, sink.getvalue())


def read_truth(location: Location) -> Truth:
    """What `store_truth` kept; raises FileNotFoundError or ArrowInvalid where it is lost or damaged."""
    payload = read_bytes(location)
    try:
        table = pq.read_table(pa.BufferReader(payload), page_checksum_verification=True)
    except OSError as error:  # Arrow's own, of a page that is not what was written
        raise pa.ArrowInvalid(f"{location} does not read ({error})") from error
    width = table.schema.field("scores").type.list_size
    scores, ordinals = (table[name].combine_chunks().flatten().to_numpy() for name in ("scores", "ordinals"))
    return Truth(scores.reshape(-1, width), ordinals.reshape(-1, width), table["own"].to_numpy())


@dataclass(frozen=True, slots=True)
class WholeTruth:
    """The exact neighbours in the whole index."""

    accepted: tuple[frozenset[int], ...]  # per query: ids that belong to its k nearest, ties at the end included
    wanted_Q: NDArray[np.int64]  # how many of them there are to find: k, or all vectors where there are fewer
    queries: NDArray[np.int64]  # numbers of the queries whose neighbours are certain


def merge_truth(truths: Sequence[Truth], live: Sequence[NDArray[np.bool_] | None], k: int, largest: bool) -> WholeTruth:
    """Put the shards' neighbours together; ids are shard << 40 | ordinal.

    `live` says which rows of a shard are not deleted (None: all). A query is left out where so many of a shard's kept
    neighbours were deleted that the next nearest is not known.
    """
    scores, ids, certain = [], [], np.ones(len(truths[0].scores_QK), bool)
    cutoffs = []
    for shard, (truth, alive) in enumerate(zip(truths, live, strict=True)):
        ordinals_QK = truth.ordinals_QK
        was_full_Q = ordinals_QK[:, -2] >= 0 if ordinals_QK.shape[1] > 1 else ordinals_QK[:, -1] >= 0
        present = ordinals_QK >= 0
        if alive is not None:
            present &= alive[np.maximum(ordinals_QK, 0)]
        worst_Q = np.where(was_full_Q, _last_score(truth), -np.inf if largest else np.inf)
        cutoffs.append(worst_Q)
        sign = 1.0 if largest else -1.0
        scores.append(np.where(present, sign * truth.scores_QK, -np.inf))
        ids.append((np.int64(shard) << 40) | np.maximum(ordinals_QK, 0))
    all_scores, all_ids = np.concatenate(scores, 1), np.concatenate(ids, 1)
    order = np.argsort(-all_scores, axis=1, kind="stable")
    all_scores, all_ids = np.take_along_axis(all_scores, order, 1), np.take_along_axis(all_ids, order, 1)
    found_Q = (all_scores > -np.inf).sum(1)
    wanted_Q = np.minimum(found_Q, k)
    kth_Q = np.take_along_axis(all_scores, np.maximum(wanted_Q - 1, 0)[:, None], 1)[:, 0]
    for worst_Q in cutoffs:  # below a shard's last kept neighbour others may lie that were not kept
        bound_Q = worst_Q if largest else -worst_Q
        certain &= kth_Q >= np.where(np.isfinite(bound_Q), bound_Q, -np.inf)
    slack = 1e-6 * np.maximum(1.0, np.abs(kth_Q))
    accepted = tuple(
        frozenset(row_ids[(row_scores >= kth - gap) & np.isfinite(row_scores)].tolist())
        for row_ids, row_scores, kth, gap in zip(all_ids, all_scores, kth_Q, slack, strict=True)
    )
    return WholeTruth(accepted, wanted_Q, np.flatnonzero(certain & (wanted_Q > 0)))


def _last_score(truth: Truth) -> NDArray[np.float32]:
    """The score of each query's last kept neighbour."""
    last = np.maximum((truth.ordinals_QK >= 0).sum(1) - 1, 0)
    return np.take_along_axis(truth.scores_QK, last[:, None], 1)[:, 0]
