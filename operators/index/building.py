"""Build a shard: stream fragments into a copy of the trained index, write it to local disk, put it on storage whole.

Sparse vectors go into an inverted file beside it; an index of sparse vectors alone has nothing trained. Memory: the
shard's codes (twice at most, while faiss's lists grow), its sparse entries while they are sorted
(operators.index.postings), the trained index, and one block of vectors.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.embedder.sparse_vectors import INDICES, WEIGHTS, SparseVectors
from operators.errors import InputError
from operators.index.ids import ID_COLUMNS, IdsWriter, id_table, read_shard_record
from operators.index.library import faiss
from operators.index.postings import PostingsWriter
from operators.index.scratch import is_stored, put_whole, scratch_folder, sweep_scratch
from operators.index.snapshot import SPARSE_FILE, FragmentRows, ShardRecord, SparseFile, shard_file
from operators.index.spec import ivf_of
from operators.index.trained import Trained, write_faiss
from operators.index.truth import HeldOut, TruthCollector, store_truth
from operators.index.vectors import Vectors, VectorSpace, read_blocks
from operators.storage import FileInfo, Location, list_folder, open_input, sha256_of, stored_sha256
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
    """A shard to build; its key follows from what goes into it, so that what another run has built of it is found."""

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
    sparse_dim: int = 0  # ids of the sparse vectors that are indexed; 0: none are

    @property
    def sparse_columns(self) -> tuple[str, ...]:
        """The columns of the embeddings that hold the sparse vectors to be indexed."""
        return (INDICES, WEIGHTS) if self.sparse_dim else ()


def finished_shard(index: Location, plan_key: str) -> ShardRecord | None:
    """The record of a shard of this plan that is on storage whole, or None; every file's hash is checked.

    The id map is written last and names the rest. Two builders of one plan may leave two shards (the graph of a
    threaded HNSW is never the same twice): files of one are never mixed with those of the other.
    """
    for info in list_folder(index / "shards"):
        if info.name.startswith(f"{plan_key}-") and info.name.endswith(".ids.parquet"):
            record = _whole_shard(index, info)
            if record is not None:
                return record
    return None


def _whole_shard(index: Location, info: FileInfo) -> ShardRecord | None:
    key = info.name.removesuffix(".ids.parquet")
    digest = stored_sha256(index / "shards" / info.name)
    if not key.endswith(f"-{digest[:16]}"):
        return None
    record = read_shard_record(index / "shards" / info.name)
    if record is None or _shard_key(record.key, digest) != key:
        return None
    record = record.model_copy(update={"key": key, "ids_bytes": info.size, "ids_sha256": digest})
    return record if all(is_stored(index / file.path, file.sha256, file.bytes) for file in record.files) else None


def _shard_key(plan_key: str, ids_sha256: str) -> str:
    """The name of a shard's files: its id map names all of them by their hashes, so other content has another name."""
    return f"{plan_key}-{ids_sha256[:16]}"


def build_shard(plan: ShardPlan, trained: Trained | None, setup: BuildSetup) -> ShardRecord:
    """Build one shard and put it on storage; returns its record. `trained` (None: no dense vectors) is used up.

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
    """Row numbers, id and sparse columns, and vectors of what a shard takes of a fragment."""
    columns = (*ID_COLUMNS, *setup.sparse_columns, *setup.keep.names)
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

    def __init__(self, trained: Trained | None, setup: BuildSetup, folder: Path) -> None:
        self._trained, self._setup, self._folder = trained, setup, folder
        self._ids = IdsWriter(folder / "ids.parquet", setup.keep)
        self._truth = TruthCollector(setup.queries, setup.space.metric) if setup.queries else None
        self._postings = PostingsWriter(setup.sparse_dim) if setup.sparse_dim else None
        self._rows: dict[str, int] = {}
        self._sample: list[Vectors] = []

    def add(self, fragment: str, rows: NDArray[np.int32], table: pa.Table, vectors: Vectors) -> None:
        """Add rows of a fragment with their vectors."""
        self._rows[fragment] = self._rows.get(fragment, 0) + len(rows)
        if len(rows):
            sparse = SparseVectors.from_table(table) if self._postings is not None else None
            self.add_table(
                id_table(fragment, rows, table, self._setup.keep), vectors, sparse, f"data/{fragment}.parquet"
            )

    def add_table(self, ids: pa.Table, vectors: Vectors, sparse: SparseVectors | None = None, where: str = "") -> None:
        """Add vectors with their rows of the id map, and compare the held-out queries with them."""
        first = self._ids.rows
        self._ids.add_table(ids)
        if self._postings is not None:
            assert sparse is not None, "an index with sparse vectors gets them with every block"
            self._postings.add(sparse, where)
        if self._trained is None:
            return
        self._trained.index.add(vectors)
        self._sample.append(vectors[::_DISTANCE_EVERY].copy())
        if self._truth is not None:
            self._truth.add(vectors, ids, first)

    def finish(self, plan: ShardPlan, started: float, lists: tuple[int, int] | None = None) -> ShardRecord:
        """Write the files and put them on storage, the id map last: with it the shard exists.

        What the id map holds, its record included, follows from the shard alone: nothing in it was measured.
        """
        setup, local, inverted = self._setup, self._folder / "shard.faiss", self._folder / SPARSE_FILE
        if self._trained is not None:
            self._write_codes(self._trained, local)
        record = ShardRecord(
            key=plan.key,
            rows=self._ids.rows,
            bytes=local.stat().st_size if local.exists() else 0,
            sha256=sha256_of(local) if local.exists() else "",
            trained_sha256=self._trained.sha256 if self._trained is not None else "",
            sparse=self._write_postings(inverted),
            fragments=tuple(FragmentRows(key=key, rows=rows) for key, rows in self._rows.items()),
            lists=lists,
            distance=self._mean_distance(),
            is_patch=any(part.rows is not None for part in plan.parts),
        )
        self._ids.close(record)
        ids = self._folder / "ids.parquet"
        digest = sha256_of(ids)
        key = _shard_key(plan.key, digest)
        complete = record.model_copy(update={"key": key, "ids_bytes": ids.stat().st_size, "ids_sha256": digest})
        if self._truth is not None and setup.queries is not None:
            store_truth(truth_file(setup.index, key, setup.queries), self._truth.finish())
        for file, written in zip(complete.files, [*self._written(complete, local, inverted), ids], strict=True):
            put_whole(written, setup.index / file.path, file.sha256)
        return complete.model_copy(update={"cpu_seconds": round(time.process_time() - started, 3)})

    @staticmethod
    def _written(record: ShardRecord, local: Path, inverted: Path) -> list[Path]:
        return [*([local] if record.bytes else []), *([inverted] if record.sparse is not None else [])]

    def _mean_distance(self) -> float | None:
        if self._trained is None or not self._sample:
            return None
        return self._trained.mean_distance(np.concatenate(self._sample))

    def _write_postings(self, file: Path) -> SparseFile | None:
        if self._postings is None:
            return None
        entries = self._postings.entries
        self._postings.write(file)
        return SparseFile(bytes=file.stat().st_size, sha256=sha256_of(file), entries=entries)

    def _write_codes(self, trained: Trained, file: Path) -> None:
        """Write the faiss index, without its centroids where it can be read without them."""
        assert trained.index.ntotal == self._ids.rows, f"{trained.index.ntotal} vectors, {self._ids.rows} ids"
        _check_lists(trained.index, trained)
        trained.assign_on_cpu()
        ivf = None if trained.spec.is_binary else ivf_of(trained.index)
        if ivf is None or _needs_centroids(ivf):
            write_faiss(trained.index, trained.spec, file)
            return
        centroids, none = (
            ivf.quantizer,
            faiss.IndexFlat(ivf.d, ivf.metric_type),
        )  # a name each: faiss holds no reference
        ivf.own_fields = False
        ivf.quantizer = none
        try:
            write_faiss(trained.index, trained.spec, file)
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


def truth_file(index: Location, key: str, queries: HeldOut) -> Location:
    """Where a shard's exact neighbours of these queries lie."""
    return index / "recall" / f"{key}.{queries.digest}.parquet"
