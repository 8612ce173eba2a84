"""Small sources, embedded without a model, and the datasets made of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from operators.corpus.reading import read_fragments
from operators.corpus.source import Source
from operators.embedder.quantization import OutputDtype, to_arrow
from operators.embedder.sparse_vectors import SparseVectors
from operators.storage import Location, write_whole
from operators.store.dataset import Identity, encode_schema
from operators.store.fragments import FragmentRecord, data_file, rejected_file, write_fragment
from operators.work.fragment import Extent, Fragment, FragmentBatch, SourceFile, Unit

KEEP = pa.schema([("lang", pa.string())])


def make_identity(dtype: OutputDtype = "float32", dim: int = 16, **changes: Any) -> Identity:
    """The identity of a dataset of normalized vectors."""
    identity = Identity(
        fingerprint="f" * 64,
        model="none",
        dim=dim,
        dtype=dtype,
        normalized=True,
        scale=1 / 127 if dtype == "int8" else None,
        keep_schema=encode_schema(KEEP),
        pack_below_bytes=0,
    )
    return dataclasses.replace(identity, **changes)


def make_source(folder: Path, num_rows: int = 25, rows_per_fragment: int = 10) -> tuple[Source, Unit]:
    """A JSONL file of which every seventh row has no text, as one unit."""
    path = folder / "docs.jsonl"
    lines = [{"id": f"d{i}", "text": None if i % 7 == 6 else f"text {i}", "lang": "en"} for i in range(num_rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = Source(path=str(path), id="id", rows_per_fragment=rows_per_fragment)
    file = SourceFile(str(path), path.stat().st_size, "1")
    return source, Unit.of((Extent(file),), source.reading(tuple(KEEP.names)))


def unit_vectors(count: int, dim: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random vectors of length 1."""
    values = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def sparse_vectors(count: int, width: int, seed: int = 0) -> SparseVectors:
    """Random vectors of 2 to 9 entries."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 10, count)
    indices = [np.sort(rng.choice(width, length, replace=False)).astype(np.int32) for length in lengths]
    weights = rng.uniform(0.1, 3, int(lengths.sum())).astype(np.float32)
    return SparseVectors(lengths, np.concatenate([np.empty(0, np.int32), *indices]), weights)


def embedded(batch: FragmentBatch, identity: Identity, seed: int = 0) -> FragmentBatch:
    """A fragment as the embed stage leaves it, with random vectors and two chunks for each even row."""
    rows = np.repeat(np.arange(batch.table.num_rows), 1 + (np.arange(batch.table.num_rows) % 2 == 0))
    chunk = np.concatenate([[0], (rows[1:] == rows[:-1]).astype(np.int32)])[: len(rows)]
    table = batch.table.drop_columns(["text"]).take(rows)
    columns = {
        "chunk": pa.array(chunk, pa.int32()),
        "char_start": pa.array(chunk * 100, pa.int64()),
        "char_end": pa.array(chunk * 100 + 90, pa.int64()),
        "text_hash": pa.array([i.to_bytes(16, "big") for i in range(len(rows))], pa.binary(16)),
        "num_tokens": pa.array([7] * len(rows), pa.int32()),
        "truncated": pa.array([False] * len(rows)),
    }
    if identity.dim:
        columns["embedding"] = to_arrow(unit_vectors(len(rows), identity.dim, seed), identity.dtype, identity.scale)
    if identity.sparse_dim:
        columns |= sparse_vectors(len(rows), identity.sparse_dim, seed).to_arrow()
    for name, column in columns.items():
        table = table.append_column(name, column)
    return batch.advance(table, [], chunks=len(rows), tokens=7 * len(rows))


def make_dataset(
    folder: Path, identity: Identity, num_rows: int = 25, rows_per_fragment: int = 10
) -> tuple[Location, Source, list[FragmentRecord]]:
    """A dataset with every fragment of `make_source` written."""
    source, unit = make_source(folder, num_rows, rows_per_fragment)
    dataset = Location(str(folder / "vectors"))
    batches = read_fragments(unit, source, KEEP)
    records = [write_fragment(dataset, identity, embedded(batch, identity)) for batch in batches]
    return dataset, source, records


def records_of(num_files: int, parts: int = 2) -> list[FragmentRecord]:
    """Records of units that were never written, one file a unit."""
    source = Source(path="/none")
    units = [Unit.of((Extent(SourceFile(f"/none/{i}.jsonl", 100, "1")),), source.reading(())) for i in range(num_files)]
    return [make_record(unit, part, part == parts - 1) for unit in units for part in range(parts)]


def make_record(unit: Unit, part: int, last: bool) -> FragmentRecord:
    """A record with counts that tell it from others."""
    return FragmentRecord(Fragment(unit, part, last), 10 + part, 9, 1, 70, 3, 2, 1, 1000, "d" * 32)


def laid_out(dataset: Location, records: Sequence[FragmentRecord]) -> list[FragmentRecord]:
    """The records, with files of their sizes in the dataset that hold nothing."""
    for record in records:
        write_whole(data_file(dataset, record.key), bytes(record.bytes))
        write_whole(rejected_file(dataset, record.key), b"rejected")
    return list(records)
