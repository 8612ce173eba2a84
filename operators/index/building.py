"""Build a shard: stream fragments into a copy of the trained index, write it to local disk, put it on storage whole.

Memory: the shard's codes (twice at most, while faiss's lists grow), the trained index, and one block of vectors.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.errors import InputError
from operators.index.ids import ID_COLUMNS, IdsWriter, id_table, read_shard_record
from operators.index.library import faiss
from operators.index.snapshot import FragmentRows, ShardRecord, shard_file
from operators.index.spec import ivf_of
from operators.index.trained import Trained, write_faiss
from operators.index.truth import HeldOut, TruthCollector, store_truth
from operators.index.vectors import Vectors, VectorSpace, read_blocks
from operators.storage import (
    Location,
    StorageError,
    delete,
    exists,
    move,
    open_input,
    sha256_of,
    size_of,
    stored_sha256,
    upload,
)
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord, data_file, read_record

BUILDER_VERSION = 1
_DISTANCE_EVERY = 64  # drift is measured on every 64th vector, since it costs a second look-up of its list


@dataclass(frozen=True, slots=True)
class FragmentPart:
    """What a shard takes of a fragment: all its rows, or some of them."""

    record: FragmentRecord
    rows: NDArray[np.int32] | None = None  # ascending row numbers; None = all

    @property
    def num_rows(self) -> int:
        """Vectors that it gives."""
        return self.record.chunks if self.rows is None else len(self.rows)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard to build; its key follows from what goes into it, so that whoever builds it writes the same."""

    key: str
    parts: tuple[FragmentPart, ...]

    @staticmethod
    def of(parts: Sequence[FragmentPart], trained_sha256: str, keep: Sequence[str]) -> ShardPlan:
        """Name a shard by its content."""
        digest = hashlib.blake2b(json.dumps([BUILDER_VERSION, trained_sha256, list(keep)]).encode(), digest_size=12)
        for part in parts:
            digest.update(part.record.key.encode())
            if part.rows is not None:
                digest.update(part.rows.astype("<i4").tobytes())
        return ShardPlan(digest.hexdigest(), tuple(parts))

    @property
    def num_rows(self) -> int:
        """Vectors of the shard."""
        return sum(part.num_rows for part in self.parts)


@dataclass(frozen=True, slots=True)
class BuildSetup:
    """What every builder is told."""

    index: Location
    dataset: Location
    identity: Identity
    space: VectorSpace
    keep: pa.Schema
    queries: HeldOut | None
    local_dir: str | None = None  # for shards under construction; None = the system's
    cache_dir: str | None = None  # for fetched files; None = the system's


def finished_shard(index: Location, key: str) -> ShardRecord | None:
    """The record of a shard that is on storage whole, or None: its id map is written last and names the rest."""
    ids = shard_file(index, key, "ids.parquet")
    if not exists(ids):
        return None
    record = read_shard_record(ids)
    file = shard_file(index, key)
    if record is None or not exists(file) or size_of(file) != record.bytes:
        return None
    return record.model_copy(update={"ids_bytes": size_of(ids), "ids_sha256": stored_sha256(ids)})


def build_shard(plan: ShardPlan, trained: Trained, setup: BuildSetup) -> ShardRecord:
    """Build one shard and put it on storage; returns its record. `trained` is used up.

    Raises InputError for vectors that cannot be indexed, OSError where disk or storage fail; then nothing of the shard
    can be seen.
    """
    started = time.process_time()
    sweep_scratch(setup.local_dir)
    with scratch_folder(setup.local_dir) as folder:
        writer = ShardWriter(trained, setup, Path(folder))
        for part in plan.parts:
            for rows, table, vectors in part_blocks(part, setup):
                writer.add(part.record.key, rows, table, vectors)
        return writer.finish(plan, started)


def part_blocks(part: FragmentPart, setup: BuildSetup) -> Iterator[tuple[NDArray[np.int32], pa.Table, Vectors]]:
    """Row numbers, id columns and vectors of what a shard takes of a fragment."""
    columns = (*ID_COLUMNS, *setup.keep.names)
    for block in read_blocks(setup.dataset, setup.identity, setup.space, part.record, columns):
        rows = np.arange(block.start, block.start + len(block.vectors), dtype=np.int32)
        if part.rows is None:
            yield rows, block.table, block.vectors
            continue
        inside = np.isin(rows, part.rows, assume_unique=True)
        yield rows[inside], block.table.filter(pa.array(inside)), block.vectors[inside]


def collect_truth(record: ShardRecord, setup: BuildSetup) -> None:
    """Find the exact neighbours of `setup.queries` in a shard that is built, from the embeddings that it came from.

    Raises InputError where those are gone: only building the shard anew helps then.
    """
    assert setup.queries is not None, "there are queries to find neighbours of"
    truth, first = TruthCollector(setup.queries, setup.space.metric), 0
    with open_input(shard_file(setup.index, record.key, "ids.parquet")) as stream:
        origin = pq.ParquetFile(stream, page_checksum_verification=True).read(columns=["fragment", "row"])
    for fragment, rows in _runs(origin):
        try:
            source = read_record(data_file(setup.dataset, fragment))
        except FileNotFoundError:
            raise InputError(
                f"set update.mode: rebuild, or measure with the queries of before: data/{fragment}.parquet is gone, "
                f"so the exact neighbours of new queries in shard {record.key} cannot be found"
            ) from None
        for _, table, vectors in part_blocks(FragmentPart(source, rows), setup):
            truth.add(vectors, table, first)
            first += len(vectors)
    store_truth(truth_file(setup.index, record.key, setup.queries), truth.finish())


def _runs(origin: pa.Table) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Runs of an id map in which the rows of one fragment follow each other, ascending."""
    fragments = origin["fragment"].cast(pa.string()).combine_chunks().dictionary_encode()
    fragments = fragments if isinstance(fragments, pa.DictionaryArray) else fragments.combine_chunks()
    codes, rows = fragments.indices.to_numpy(), origin["row"].to_numpy()
    starts = np.flatnonzero((np.diff(codes, prepend=-1) != 0) | (np.diff(rows, prepend=-1) <= 0))
    for start, end in zip(starts, [*starts[1:], len(codes)], strict=True):
        yield str(fragments.dictionary[int(codes[start])]), rows[start:end]


class ShardWriter:
    """Takes blocks of vectors, and leaves a shard on storage."""

    def __init__(self, trained: Trained, setup: BuildSetup, folder: Path) -> None:
        self._trained, self._setup, self._folder = trained, setup, folder
        self._ids = IdsWriter(folder / "ids.parquet", setup.keep)
        self._truth = TruthCollector(setup.queries, setup.space.metric) if setup.queries else None
        self._rows: dict[str, int] = {}
        self._sample: list[Vectors] = []

    def add(self, fragment: str, rows: NDArray[np.int32], table: pa.Table, vectors: Vectors) -> None:
        """Add rows of a fragment with their vectors."""
        self._rows[fragment] = self._rows.get(fragment, 0) + len(rows)
        if len(rows):
            self.add_table(id_table(fragment, rows, table, self._setup.keep), vectors)

    def add_table(self, ids: pa.Table, vectors: Vectors) -> None:
        """Add vectors with their rows of the id map, and compare the held-out queries with them."""
        first = int(self._trained.index.ntotal)
        self._trained.index.add(vectors)
        self._ids.add_table(ids)
        self._sample.append(vectors[::_DISTANCE_EVERY].copy())
        if self._truth is not None:
            self._truth.add(vectors, ids, first)

    def finish(self, plan: ShardPlan, started: float, lists: tuple[int, int] | None = None) -> ShardRecord:
        """Write the files and put them on storage, the id map last: with it the shard exists."""
        setup, index = self._setup, self._trained.index
        assert index.ntotal == self._ids.rows, f"{index.ntotal} vectors, {self._ids.rows} ids"
        _check_lists(index, self._trained)
        local = self._folder / "shard.faiss"
        self._write_without_centroids(local)
        record = ShardRecord(
            key=plan.key,
            rows=self._ids.rows,
            bytes=local.stat().st_size,
            sha256=sha256_of(local),
            trained_sha256=self._trained.sha256,
            fragments=tuple(FragmentRows(key=key, rows=rows) for key, rows in self._rows.items()),
            lists=lists,
            distance=self._trained.mean_distance(np.concatenate(self._sample)) if self._sample else None,
            is_patch=any(part.rows is not None for part in plan.parts),
            cpu_seconds=round(time.process_time() - started, 3),
        )
        self._ids.close(record)
        put_whole(local, shard_file(setup.index, plan.key), record.sha256)
        if self._truth is not None and setup.queries is not None:
            store_truth(truth_file(setup.index, plan.key, setup.queries), self._truth.finish())
        ids = self._folder / "ids.parquet"
        complete = record.model_copy(update={"ids_bytes": ids.stat().st_size, "ids_sha256": sha256_of(ids)})
        put_whole(ids, shard_file(setup.index, plan.key, "ids.parquet"), complete.ids_sha256)
        return complete

    def _write_without_centroids(self, file: Path) -> None:
        self._trained.assign_on_cpu()
        ivf = None if self._trained.spec.is_binary else ivf_of(self._trained.index)
        if ivf is None or _needs_centroids(ivf):
            write_faiss(self._trained.index, self._trained.spec, file)
            return
        centroids, none = (
            ivf.quantizer,
            faiss.IndexFlat(ivf.d, ivf.metric_type),
        )  # a name each: faiss holds no reference
        ivf.own_fields = False
        ivf.quantizer = none
        try:
            write_faiss(self._trained.index, self._trained.spec, file)
        finally:
            ivf.quantizer = centroids


def _needs_centroids(ivf: Any) -> bool:
    """Whether faiss computes tables from the centroids while it reads the file."""
    is_pq = isinstance(ivf, (faiss.IndexIVFPQ, faiss.IndexIVFPQFastScan))
    return is_pq and ivf.by_residual and ivf.metric_type == faiss.METRIC_L2


def _check_lists(index: Any, trained: Trained) -> None:
    """faiss drops what it cannot assign to a list without a word."""
    core = index if trained.spec.is_binary else ivf_of(index)
    if core is not None and hasattr(core, "invlists"):
        held = sum(core.invlists.list_size(i) for i in range(core.nlist)) if core.nlist < 1 << 16 else core.ntotal
        assert held == core.ntotal, f"the lists hold {held} of {core.ntotal} vectors"


def put_whole(local: Path, location: Location, sha256: str) -> None:
    """Put a local file into place and read it back; what does not read back as it was is removed."""
    if move(local, location):
        return  # the very file that was hashed
    upload(local, location)
    if stored_sha256(location) != sha256:
        delete(location)
        raise StorageError(5, f"run again: {location} did not read back as it was written; it was removed")


def truth_file(index: Location, key: str, queries: HeldOut) -> Location:
    """Where a shard's exact neighbours of these queries lie."""
    return index / "recall" / f"{key}.{queries.digest}.parquet"


_SCRATCH = "embedfleet-shard-"


def scratch_folder(local_dir: str | None) -> tempfile.TemporaryDirectory[str]:
    """A folder on this machine's disk that carries its process's number, so that the next one can clear up after it."""
    if local_dir:
        os.makedirs(local_dir, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-", dir=local_dir)


def sweep_scratch(local_dir: str | None) -> None:
    """Remove the folders of builders that were killed; gigabytes that nobody else would remove."""
    for folder in Path(local_dir or tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        pid = folder.name.removeprefix(_SCRATCH).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)
