"""Shards by inverted list: every document of some lists, so that a query needs only the shards of its nearest lists.

    scatter   per group of fragments: find each vector's list, put it into that list's bucket   (files in scattered/)
    gather    per shard: the buckets of its lists, from all groups, become one index

A bucket is a run of lists; there are several a shard, so that shards come out even whatever the lists' lengths.
Scattered vectors take the place that the embeddings take as float32, until the snapshot is published.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import time
import uuid
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
from operators.storage import Location, create_exclusive, delete, iter_files, open_input, read_bytes, upload

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
    groups: tuple[Scattered, ...]
    first: int
    end: int
    lists: tuple[int, int]


def bucket_edges(num_lists: int, buckets: int) -> NDArray[np.int64]:
    """Where the buckets begin among the lists, and the end."""
    return np.linspace(0, num_lists, min(buckets, num_lists) + 1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Scattered:
    """The buckets of a group on storage: vectors in each, and the token of the one scattering they are all from."""

    group: str
    token: str
    counts: tuple[int, ...]


class ScatteredGone(OSError):
    """Buckets are not there any more: another run has finished the same shards and cleared up. Scatter again."""


def scatter(plan: Scatter, trained: Trained, setup: BuildSetup) -> Scattered:
    """Put a group's vectors into the buckets of their lists, on storage.

    A group that is scattered already is not read again; of two runs that scatter it at once the first to finish counts.
    """
    group, index = plan.group.key, setup.index
    there = _scattered(index, group)
    if there is not None:
        return there
    mine = _scatter(plan, uuid.uuid4().hex[:12], trained, setup)
    facts = {"token": mine.token, "counts": mine.counts}
    if create_exclusive(_marker(index, group), json.dumps(facts).encode()):
        return mine
    for bucket in range(len(mine.counts)):
        delete(_bucket_file(index, mine, bucket))
    there = _scattered(index, group)
    if there is None:
        raise ScatteredGone(errno.ESTALE, f"the buckets of group {group} were removed by another run")
    return there


def _scattered(index: Location, group: str) -> Scattered | None:
    try:
        facts = json.loads(read_bytes(_marker(index, group)))
        return Scattered(group, facts["token"], tuple(facts["counts"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # damaged, or of an earlier version
        delete(_marker(index, group))
        return None


def _scatter(plan: Scatter, token: str, trained: Trained, setup: BuildSetup) -> Scattered:
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
        done = Scattered(plan.group.key, token, tuple(counts))
        for bucket, path in enumerate(paths):
            if counts[bucket]:
                upload(path, _bucket_file(setup.index, done, bucket))
    return done


def plan_list_shards(groups: Sequence[Scattered], shards: int, num_lists: int, trained_sha256: str) -> list[ListShard]:
    """Runs of buckets with about equally many vectors, one run a shard."""
    totals = np.sum(np.array([group.counts for group in groups], np.int64), axis=0)
    edges = bucket_edges(num_lists, len(totals))
    reached = np.cumsum(totals)
    bounds = np.searchsorted(reached, reached[-1] * np.arange(1, shards) / shards) + 1
    cuts = sorted({0, *(int(b) for b in bounds if 0 < b < len(totals)), len(totals)})
    names = tuple(group.group for group in groups)
    plans = []
    for first, end in itertools.pairwise(cuts):
        facts = json.dumps(["list", trained_sha256, names, first, end, len(totals)])
        key = hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()
        plans.append(ListShard(key, tuple(groups), first, end, (int(edges[first]), int(edges[end]))))
    return plans


def gather(plan: ListShard, trained: Trained, setup: BuildSetup) -> ShardRecord:
    """Build a shard of its buckets and put it on storage; memory as in `build_shard`.

    Raises ScatteredGone where a bucket has not the vectors that were put into it.
    """
    started = time.process_time()
    sweep_scratch(setup.local_dir)
    with scratch_folder(setup.local_dir) as folder:
        writer = ShardWriter(trained, setup, Path(folder))
        for group in plan.groups:
            for bucket in range(plan.first, plan.end):
                for table in _read_bucket(setup.index, group, bucket):
                    column = table[_VECTOR].combine_chunks()
                    vectors = column.flatten().to_numpy().reshape(len(column), -1)
                    sparse = SparseVectors.from_table(table) if setup.sparse_dim else None
                    ids = table.drop_columns([_VECTOR, *setup.sparse_columns])
                    writer.add_table(ids, vectors, sparse, f"the fragments of group {group.group}")
        return writer.finish(ShardPlan(plan.key, ()), started, plan.lists)


def remove_scattered(index: Location) -> None:
    """Delete what `scatter` left, when the shards are built; the markers first, which promise the rest."""
    for info in sorted(iter_files(index / "scattered"), key=lambda info: not info.name.endswith(".json")):
        delete(Location(info.url, index.options))


def _read_bucket(index: Location, group: Scattered, bucket: int) -> Iterator[pa.Table]:
    """The rows of a bucket in tables of some thousand; nothing where no vector fell into it."""
    if not group.counts[bucket]:
        return
    found = 0
    try:
        for table in _tables(_bucket_file(index, group, bucket)):
            found += table.num_rows
            yield table
    except (FileNotFoundError, pa.ArrowInvalid):
        found = -1
    if found != group.counts[bucket]:
        delete(_marker(index, group.group))  # it promises what is not there
        raise ScatteredGone(errno.ESTALE, f"bucket {bucket} of group {group.group} is not there as it was written")


def _tables(location: Location) -> Iterator[pa.Table]:
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


def _bucket_file(index: Location, group: Scattered, bucket: int) -> Location:
    return index / "scattered" / f"{group.group}.{group.token}.{bucket}.arrows"


def _marker(index: Location, group: str) -> Location:
    return index / "scattered" / f"{group}.json"
