"""A uniform sample of a dataset's vectors, for training and for held-out queries.

Every row of every fragment is as likely as any other: an index trained on the head of an ordered corpus has lists of
very unequal length and compares each query with 4 times as many vectors (docs/index.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.index.vectors import Vectors, VectorSpace, open_fragment
from operators.storage import Location
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord

# A fragment is read whole row groups at a time, so beyond so many of them some are left out, at random; rows of some
# thousand fragments spread over the corpus stand for all.
MAX_FRAGMENTS = 4096


@dataclass(frozen=True, slots=True)
class Draw:
    """How many rows to take of one fragment: for training, and as held-out queries."""

    record: FragmentRecord
    num_train: int
    num_queries: int


def plan_draws(records: Sequence[FragmentRecord], num_train: int, num_queries: int, seed: int) -> list[Draw]:
    """Spread a sample over the fragments in proportion to their vectors; fewer where the dataset has not so many."""
    rng = np.random.default_rng(seed)
    records = [record for record in records if record.chunks]
    if len(records) > MAX_FRAGMENTS:
        weights = np.array([record.chunks for record in records], np.float64)
        chosen = rng.choice(len(records), MAX_FRAGMENTS, replace=False, p=weights / weights.sum())
        records = [records[i] for i in np.sort(chosen)]
    sizes = np.array([record.chunks for record in records], np.int64)
    total = int(sizes.sum())
    num_queries = min(num_queries, total)
    queries = rng.multivariate_hypergeometric(sizes, num_queries, method="marginals")
    train = rng.multivariate_hypergeometric(sizes - queries, min(num_train, total - num_queries), method="marginals")
    return [
        Draw(record, int(t), int(q)) for record, t, q in zip(records, train, queries, strict=True) if int(t) + int(q)
    ]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The sampled rows of one fragment."""

    train: Vectors
    queries: Vectors
    query_ids: pa.Table  # doc_id, chunk


def draw(dataset: Location, identity: Identity, space: VectorSpace, plan: Draw, seed: int) -> Drawn:
    """Read the sampled rows of one fragment; the same for the same seed, whoever reads it."""
    key = hashlib.blake2b(f"{seed}:{plan.record.key}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(key, "little"))
    rows = rng.choice(plan.record.chunks, plan.num_train + plan.num_queries, replace=False)
    is_query = np.zeros(len(rows), bool)
    is_query[: plan.num_queries] = True
    order = np.argsort(rows)
    table = _take_rows(dataset, identity, plan.record, rows[order])
    is_query = is_query[order]
    vectors = space.from_column(table["embedding"], f"data/{plan.record.key}.parquet")
    ids = table.select(["doc_id", "chunk"]).filter(pa.array(is_query))
    return Drawn(vectors[~is_query], vectors[is_query], ids)


def _take_rows(dataset: Location, identity: Identity, record: FragmentRecord, rows: NDArray[np.int64]) -> pa.Table:
    """The rows with these ascending numbers; row groups that hold none of them are not read."""
    tables = []
    with open_fragment(dataset, identity, record) as file:
        start = 0
        for group in range(file.metadata.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            inside = rows[(rows >= start) & (rows < end)] - start
            if len(inside):
                tables.append(file.read_row_group(group, columns=["doc_id", "chunk", "embedding"]).take(inside))
            start = end
    return pa.concat_tables(tables)
