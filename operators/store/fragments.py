"""Write and read back single fragments.

The rejected rows are written first and the data file last: the data file's existence is the commit, and its footer
carries the fragment's record, so a run that died before its snapshot loses nothing that was written. Writing a fragment
again replaces it with the same rows and vectors.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from operators.embedder.sparse_vectors import FIELDS, WEIGHTS
from operators.storage import Location, delete, exists, open_input, write_whole
from operators.store.dataset import Identity
from operators.work.fragment import Counts, Extent, Fragment, FragmentBatch, fragment_from_dict

_RECORD_KEY = b"embedfleet.fragment"
_VECTORS = "embedding.list.element"
_LEADING_COLUMNS = ("doc_id", "chunk", "text_hash", "num_tokens", "truncated")
_TRAILING_COLUMNS = ("char_start", "char_end", "source_path", "source_row")


@dataclass(frozen=True, slots=True)
class FragmentRecord:
    """What a snapshot knows of one fragment."""

    fragment: Fragment
    rows: int
    chunks: int
    rejected: int
    tokens: int
    padding_tokens: int
    lost_tokens: int
    truncated: int
    bytes: int
    ids_digest: str
    unreadable_files: int = 0
    lost_bytes: int = 0

    @property
    def key(self) -> str:
        """The fragment's key."""
        return self.fragment.key

    @property
    def extents(self) -> tuple[Extent, ...]:
        """What of the source the fragment's unit reads."""
        return self.fragment.unit.extents


def data_file(dataset: Location, key: str) -> Location:
    """Where the vectors of a fragment lie."""
    return dataset / "data" / f"{key}.parquet"


def rejected_file(dataset: Location, key: str) -> Location:
    """Where the rejected rows of a fragment lie."""
    return dataset / "rejected" / f"{key}.parquet"


def output_schema(identity: Identity) -> pa.Schema:
    """The columns of a data file: `embedding` where there are dense vectors, two more where there are sparse ones."""
    element = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}[
        identity.dtype
    ]
    width = identity.dim // 8 if identity.dtype == "binary" else identity.dim
    types = {
        "doc_id": pa.string(),
        "chunk": pa.int32(),
        "text_hash": pa.binary(16),
        "num_tokens": pa.int32(),
        "truncated": pa.bool_(),
        "char_start": pa.int64(),
        "char_end": pa.int64(),
        "source_path": pa.string(),
        "source_row": pa.int64(),
    }
    leading, trailing = ([pa.field(n, types[n]) for n in names] for names in (_LEADING_COLUMNS, _TRAILING_COLUMNS))
    dense = [pa.field("embedding", pa.list_(element, width))] if identity.dim else []
    sparse = list(FIELDS) if identity.sparse_dim else []
    return pa.schema([*leading, *dense, *sparse, *trailing, *identity.keep])


def write_fragment(dataset: Location, identity: Identity, batch: FragmentBatch) -> FragmentRecord:
    """Write a fragment's rejected rows, then its vectors; returns its record."""
    counts = dataclasses.replace(batch.counts, rejected=batch.rejected.num_rows, chunks=batch.table.num_rows)
    key = batch.fragment.key
    if batch.rejected.num_rows:
        write_whole(rejected_file(dataset, key), _parquet(batch.rejected, {}))
    elif exists(rejected_file(dataset, key)):
        delete(rejected_file(dataset, key))  # left by an attempt that died between the two files
    schema = output_schema(identity)
    table = batch.table.select(schema.names).cast(schema)
    head = {
        "fragment": dataclasses.asdict(batch.fragment),
        "counts": dataclasses.asdict(counts),
        "ids_digest": batch.ids_digest,
    }
    metadata = {
        _RECORD_KEY: json.dumps(head).encode(),
        b"embedfleet.dataset": json.dumps(dataclasses.asdict(identity)).encode(),
    }
    payload = _parquet(table, metadata)
    write_whole(data_file(dataset, key), payload)
    return _record(batch.fragment, counts, batch.ids_digest, payload.size)


def read_record(location: Location) -> FragmentRecord:
    """The record of a data file, from its footer."""
    try:
        metadata, size = _footer(location)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        metadata, size = _footer(location)  # another run put the same fragment in its place between two reads
    head = json.loads(metadata[_RECORD_KEY])
    counts = head["counts"]
    counts = Counts(**{**counts, "lengths": tuple(counts["lengths"])})
    return _record(fragment_from_dict(head["fragment"]), counts, head["ids_digest"], size)


def _footer(location: Location) -> tuple[dict[bytes, bytes], int]:
    with open_input(location) as stream:
        return pq.ParquetFile(stream).schema_arrow.metadata or {}, stream.seek(0, os.SEEK_END)


def read_table(location: Location, columns: list[str] | None = None) -> pa.Table:
    """A data or rejected file, whole or some of its columns."""
    with open_input(location) as stream:
        return pq.ParquetFile(stream).read(columns=columns)


def record_from_dict(record: dict[str, Any]) -> FragmentRecord:
    """Rebuild a record from `dataclasses.asdict`."""
    fragment = record["fragment"]
    return FragmentRecord(**{**record, "fragment": fragment_from_dict(fragment)})


def _record(fragment: Fragment, counts: Counts, ids_digest: str, size: int) -> FragmentRecord:
    names = {field.name for field in dataclasses.fields(FragmentRecord)}
    numbers = {name: value for name, value in dataclasses.asdict(counts).items() if name in names}
    return FragmentRecord(fragment=fragment, bytes=size, ids_digest=ids_digest, **numbers)


def _parquet(table: pa.Table, metadata: dict[bytes, bytes]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    names = [column.path for column in _leaf_columns(table.schema)]
    # Float vectors are noise to a compressor (zstd wins 7 % of float32 for a tenth of the writing speed), so they stay
    # plain. Parquet has no integers below 32 bits: int8 and binary need a dictionary to be a byte a component.
    plain = {"text_hash", "doc_id", f"{WEIGHTS}.list.element"}
    compression = dict.fromkeys(names, "zstd")
    if "embedding" in table.column_names and pa.types.is_floating(table.schema.field("embedding").type.value_type):
        plain.add(_VECTORS)
        compression[_VECTORS] = "none"
    dictionaries = [name for name in names if name not in plain]
    pq.write_table(table, sink, compression=compression, use_dictionary=dictionaries)
    return sink.getvalue()


def _leaf_columns(schema: pa.Schema) -> list[pq.ColumnSchema]:
    probe = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), probe)
    parquet_schema = pq.ParquetFile(pa.BufferReader(probe.getvalue())).schema
    return [parquet_schema.column(i) for i in range(len(parquet_schema))]
