"""Shards by inverted list: every document of some lists, so that a query needs only the shards of its nearest lists.

    scatter   per group of fragments: find each vector's list, put it into that list's bucket   (files in scattered/)
    gather    per shard: the buckets of its lists, from all groups, become one index

A bucket is a run of lists; there are several a shard, so that shards come out even whatever the lists' lengths.
Scattered vectors take the place that the embeddings take as float32, until the snapshot is published.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.embedder.sparse_vectors import FIELDS, SparseVectors
from operators.index.building import BuildSetup, ShardPlan, ShardWriter, part_blocks
from operators.index.ids import id_table, ids_schema
from operators.index.scratch import scratch_folder, sweep_scratch
from operators.index.snapshot import ShardRecord
from operators.index.trained import Trained
from operators.storage import Location, delete, exists, iter_files, open_input, read_bytes, upload, write_whole

BUCKETS_PER_SHARD = 4
_VECTOR = "vector"


@dataclass(frozen=True, slots=True)
class Scatter:
    """A group of fragments to scatter, and into how many buckets."""

    group: ShardPlan
    buckets: int


@dataclass(frozen=True, slots=True)
class ListShard:
    """A shard to gather: the buckets [first, end) of all groups."""

    key: str
    groups: tuple[str, ...]
    first: int
    end: int
    lists: tuple[int, int]


def bucket_edges(num_lists: int, buckets: int) -> NDArray[np.int64]:
    """Where the buckets begin among the lists, and the end."""
    return np.linspace(0, num_lists, min(buckets, num_lists) + 1).astype(np.int64)


def scatter(plan: Scatter, trained: Trained, setup: BuildSetup) -> list[int]:
    """Put a group's vectors into the buckets of their lists, on storage; returns how many each got.

    A group that is scattered already is not read again.
    """
    marker = _marker(setup.index, plan.group.key)
    if exists(marker):
        counts: list[int] = json.loads(read_bytes(marker))
        return counts
    sweep_scratch(setup.local_dir)
    edges = bucket_edges(trained.num_lists, plan.buckets)
    counts = [0] * (len(edges) - 1)
    schema = _schema(setup)
    with scratch_folder(setup.local_dir) as folder, contextlib.ExitStack() as open_files:
        paths = [Path(folder) / str(bucket) for bucket in range(len(counts))]
        writers = [open_files.enter_context(pa.ipc.new_stream(str(path), schema)) for path in paths]
        for part in plan.group.parts:
            for rows, table, vectors in part_blocks(part, setup):
                lists = trained.nearest_lists(vectors)
                ids = id_table(part.record.key, rows, table, setup.keep)
                values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
                whole = ids.append_column(_VECTOR, values)
                for name in setup.sparse_columns:
                    whole = whole.append_column(name, table[name])
                buckets = np.searchsorted(edges, lists, side="right") - 1
                for bucket in np.unique(buckets):
                    mine = whole.filter(pa.array(buckets == bucket))
                    writers[bucket].write_table(mine.cast(schema))
                    counts[bucket] += mine.num_rows
        for writer in writers:
            writer.close()
        for bucket, path in enumerate(paths):
            if counts[bucket]:
                upload(path, _bucket_file(setup.index, plan.group.key, bucket))
    write_whole(marker, json.dumps(counts).encode())
    return counts


def plan_list_shards(
    groups: Sequence[ShardPlan], counts: Sequence[Sequence[int]], shards: int, num_lists: int, trained_sha256: str
) -> list[ListShard]:
    """Runs of buckets with about equally many vectors, one run a shard."""
    totals = np.sum(np.array(counts, np.int64), axis=0)
    edges = bucket_edges(num_lists, len(totals))
    reached = np.cumsum(totals)
    bounds = np.searchsorted(reached, reached[-1] * np.arange(1, shards) / shards) + 1
    cuts = sorted({0, *(int(b) for b in bounds if 0 < b < len(totals)), len(totals)})
    names = tuple(group.key for group in groups)
    plans = []
    for first, end in itertools.pairwise(cuts):
        facts = json.dumps(["list", trained_sha256, names, first, end, len(totals)])
        key = hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()
        plans.append(ListShard(key, names, first, end, (int(edges[first]), int(edges[end]))))
    return plans


def gather(plan: ListShard, trained: Trained, setup: BuildSetup) -> ShardRecord:
    """Build a shard of its buckets and put it on storage; memory as in `build_shard`."""
    started = time.process_time()
    sweep_scratch(setup.local_dir)
    with scratch_folder(setup.local_dir) as folder:
        writer = ShardWriter(trained, setup, Path(folder))
        for group in plan.groups:
            for bucket in range(plan.first, plan.end):
                for table in _read_bucket(_bucket_file(setup.index, group, bucket)):
                    column = table[_VECTOR].combine_chunks()
                    vectors = column.flatten().to_numpy().reshape(len(column), -1)
                    sparse = SparseVectors.from_table(table) if setup.sparse_dim else None
                    ids = table.drop_columns([_VECTOR, *setup.sparse_columns])
                    writer.add_table(ids, vectors, sparse, f"the fragments of group {group}")
        return writer.finish(ShardPlan(plan.key, ()), started, plan.lists)


def remove_scattered(index: Location) -> None:
    """Delete what `scatter` left, when the shards are built."""
    for info in list(iter_files(index / "scattered")):
        delete(Location(info.url, index.options))


def _read_bucket(location: Location) -> Iterator[pa.Table]:
    """The rows of a bucket in tables of some thousand; nothing where no vector fell into it."""
    if not exists(location):
        return
    pending: list[pa.RecordBatch] = []
    with open_input(location) as stream, pa.ipc.open_stream(stream) as reader:
        for batch in reader:
            pending.append(batch)
            if sum(b.num_rows for b in pending) >= 8192:
                yield pa.Table.from_batches(pending)
                pending = []
    if pending:
        yield pa.Table.from_batches(pending)


def _schema(setup: BuildSetup) -> pa.Schema:
    # Plain strings: an Arrow stream would have to replace its dictionary with every fragment.
    ids = ids_schema(setup.keep)
    plain = [pa.field(f.name, pa.string()) if f.name == "fragment" else f for f in ids]
    element = pa.uint8() if setup.space.dtype == "binary" else pa.float32()
    sparse = FIELDS if setup.sparse_dim else ()
    return pa.schema([*plain, pa.field(_VECTOR, pa.list_(element, setup.space.width)), *sparse])


def _bucket_file(index: Location, group: str, bucket: int) -> Location:
    return index / "scattered" / f"{group}.{bucket}.arrows"


def _marker(index: Location, group: str) -> Location:
    return index / "scattered" / f"{group}.json"
