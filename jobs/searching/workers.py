"""What runs in the workers of a batch search: read ready vectors, and search a batch on the workers that hold shards.

A batch of queries comes as one row (operators.work.fragment.to_row), as in the embed pipeline; its results are one
Parquet file among the parts, written whole, so that a search that was stopped goes on where it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.embedding.queries import as_queries
from jobs.embedding.workers import retried
from jobs.indexing.open_shards import search_all, search_sparse
from jobs.indexing.place import Shards
from jobs.indexing.workers import ShardWorker
from operators.embedder.sparse_vectors import SparseVectors
from operators.index.fusion import Fusion, Mode, fuse
from operators.index.group import Found, widened
from operators.index.list_costs import FinerStore
from operators.index.open import RESULT_COLUMNS, result_table
from operators.index.queries import Queries, read_query_vectors
from operators.index.snapshot import Settings
from operators.index.vectors import Vectors, VectorSpace
from operators.storage import Location, exists, open_input, write_whole
from operators.work.fragment import (
    REJECTED_SCHEMA,
    Counts,
    Extent,
    Fragment,
    FragmentBatch,
    SourceFile,
    Unit,
    from_row,
    to_row,
)


@dataclass(frozen=True, slots=True)
class SearchSetup:
    """What a search is told."""

    parts: Location
    shards: Shards
    space: VectorSpace
    k: int
    settings: Settings
    filter: str | None
    columns: tuple[str, ...]
    larger_is_better: bool
    finer: FinerStore | None
    batch_rows: int  # ready vectors searched at once
    mode: Mode
    fusion: Fusion
    selected: int  # vectors that match the filter; 0: there is none
    num_lists: int  # inverted lists of the index; 0: it has none


def part_file(parts: Location, key: str) -> Location:
    """Where the results of a batch lie until all are there."""
    return parts / "data" / f"{key}.parquet"


def rejected_file(parts: Location, key: str) -> Location:
    """Where the queries of a batch lie that could not be embedded."""
    return parts / "rejected" / f"{key}.parquet"


def read_vectors(block: pa.Table, queries: Queries, setup: SearchSetup) -> Iterator[pa.Table]:
    """Files in, batches of ready vectors out."""
    for row in block.to_pylist():
        file = SourceFile(row["path"], row["size"], row["version"])
        unit = Unit.of((Extent(file),), repr(queries.model_dump(include={"id", "vector"})))
        one = queries.model_copy(update={"path": file.path})
        batches = read_query_vectors(one, setup.space, setup.batch_rows)
        following = next(batches, None)
        for part in itertools.count():
            batch, following = following, next(batches, None)
            if batch is None:
                break
            values = pa.FixedSizeListArray.from_arrays(
                pa.array(batch.vectors_QD.reshape(-1)), batch.vectors_QD.shape[1]
            )
            table = pa.table({"doc_id": batch.ids, "embedding": values})
            counts = Counts(rows=table.num_rows)
            fragment = Fragment(unit, part, following is None)
            yield to_row(FragmentBatch(fragment, table, REJECTED_SCHEMA.empty_table(), counts))


def search_batch(block: pa.Table, setup: SearchSetup) -> pa.Table:
    """Search a batch and write its results; the driver learns what became of it."""
    batch = from_row(block)
    key = batch.fragment.key
    try:
        if not exists(part_file(setup.parts, key)):
            found = _find(batch, setup)
            results = _results(batch.table["doc_id"].combine_chunks(), found, setup)
            if batch.rejected.num_rows:
                write_whole(rejected_file(setup.parts, key), _parquet(batch.rejected))
            write_whole(part_file(setup.parts, key), _parquet(results))
        with open_input(part_file(setup.parts, key)) as stream:
            results_written = pq.ParquetFile(stream).metadata.num_rows
    except OSError as error:
        raise retried(error) from error
    first = batch.fragment.unit.extents[0]
    rejected = batch.rejected.num_rows
    return pa.table(
        {
            "key": [key],
            "path": [first.file.path],
            "start": [first.start],
            "part": [batch.fragment.part],
            "queries": [batch.counts.rows - rejected],
            "rejected": [rejected],
            "results": [results_written],
        }
    )


def _vectors(batch: FragmentBatch, space: VectorSpace) -> Vectors:
    column = batch.table["embedding"].combine_chunks()
    column = column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
    values = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    if values.dtype == np.uint8:  # ready vectors of packed bits
        return space.prepared(values, "the queries")
    return as_queries(values, space)


def _find(batch: FragmentBatch, setup: SearchSetup) -> Found:
    """The best of each query of a batch over all shards, by the vectors that the mode asks for."""
    k = setup.k if setup.mode != "hybrid" else setup.fusion.candidates(setup.k)
    found = []
    if setup.mode != "sparse":
        found.append(_find_dense(_vectors(batch, setup.space), k, setup))
    if setup.mode != "dense":
        queries = setup.shards.share(SparseVectors.from_table(batch.table))
        found.append(search_sparse(setup.shards, queries, batch.table.num_rows, k, setup.filter))
    if len(found) == 1:
        return found[0]
    return fuse(found[0], found[1], setup.larger_is_better, setup.fusion, setup.k)


def _find_dense(queries_QD: Vectors, k: int, setup: SearchSetup) -> Found:
    def search(some_QD: Vectors, settings: Settings) -> Found:
        found, _ = search_all(
            setup.shards,
            setup.shards.share(some_QD),
            len(some_QD),
            k,
            settings,
            setup.filter,
            setup.larger_is_better,
            setup.finer,
        )
        return found

    return widened(search, queries_QD, setup.settings, min(k, setup.selected), setup.num_lists)


def _results(ids: Any, found: Found, setup: SearchSetup) -> pa.Table:
    ids = ids if isinstance(ids, pa.Array) else pa.concat_arrays(ids.chunks)
    columns = [*RESULT_COLUMNS, *setup.columns]
    query, place = np.nonzero(found.ids_QK >= 0)
    wanted = setup.shards.share(found.ids_QK[query, place])
    answers = setup.shards.ask(ShardWorker.look_up, wanted, columns)
    places = np.concatenate([at for at, _ in answers])
    table = pa.concat_tables([rows for _, rows in answers]).take(pa.array(np.argsort(places)))
    return result_table(ids.take(pa.array(query)), "query_id", place, found.scores_QK[query, place], table)


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
