"""The id map of a shard: row i says which document vector i belongs to, and where it comes from.

doc_id, chunk      of the document and its piece
text_hash          of the piece's text, by which an update sees what has changed
fragment, row      the embeddings file (data/<fragment>.parquet) and the row in it
and the kept columns of the embeddings
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.errors import InputError
from operators.index.filters import evaluate
from operators.index.snapshot import ShardRecord, record_of, to_metadata
from operators.storage import Location, open_input

ID_COLUMNS = ("doc_id", "chunk", "text_hash")
_FIXED = (
    ("doc_id", pa.string()),
    ("chunk", pa.int32()),
    ("text_hash", pa.binary(16)),
    ("fragment", pa.dictionary(pa.int32(), pa.string())),
    ("row", pa.int32()),
)
_BATCH_ROWS = 65536
_IN_MEMORY_BYTES = 32 << 20  # id maps above this are mapped from an uncompressed copy on disk


def ids_schema(keep: pa.Schema) -> pa.Schema:
    """The columns of an id map."""
    return pa.schema([pa.field(name, kind) for name, kind in _FIXED] + list(keep))


def id_table(fragment: str, rows: NDArray[np.int32], table: pa.Table, keep: pa.Schema) -> pa.Table:
    """Rows of a fragment, by their numbers in it, in an id map's form."""
    schema = ids_schema(keep)
    fragments = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), pa.array([fragment]))
    columns = {"fragment": fragments, "row": pa.array(rows)}
    return pa.table([columns[name] if name in columns else table[name] for name in schema.names], schema=schema)


class IdsWriter:
    """Writes an id map to a local file, block by block; the shard's record goes into its footer at the end."""

    def __init__(self, file: Path, keep: pa.Schema) -> None:
        self.file, self.rows = file, 0
        self._schema = ids_schema(keep)
        # Arrow verifies the pages' checksums when it reads, so a damaged id map is an error and no wrong document.
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd", write_page_checksum=True)

    def add_table(self, table: pa.Table) -> None:
        """Add rows in an id map's form (`id_table`)."""
        self._writer.write_table(table.cast(self._schema), row_group_size=_BATCH_ROWS)
        self.rows += table.num_rows

    def close(self, record: ShardRecord | None = None) -> None:
        """Finish the file."""
        if record is not None:
            self._writer.add_key_value_metadata(to_metadata(record))
        self._writer.close()


def read_shard_record(location: Location) -> ShardRecord | None:
    """The record in an id map's footer; None where the file is damaged or no id map."""
    try:
        with open_input(location) as stream:
            return record_of(pq.ParquetFile(stream).metadata.metadata or {})
    except pa.ArrowInvalid:
        return None


class IdMap:
    """A shard's id map, opened for looking up; memory: nothing of large ones, they are mapped."""

    def __init__(self, file: Path, scratch: Path, key: str) -> None:
        try:
            if file.stat().st_size <= _IN_MEMORY_BYTES:
                table = pq.read_table(file, page_checksum_verification=True)
                self._batches = _even_batches(table)
            else:
                self._batches = _mapped(file, scratch / f"{key}.{file.stat().st_size}.arrow")
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"restore {file} or build the index again: it does not read ({error})") from None
        self.schema = self._batches[0].schema
        self.rows = sum(batch.num_rows for batch in self._batches)

    def take(self, ordinals: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """The rows of these vectors, in this order."""
        wanted = pa.schema([self.schema.field(name) for name in columns])
        numbers, pieces, places = ordinals // _BATCH_ROWS, [], []
        for number in np.unique(numbers):
            at = np.flatnonzero(numbers == number)
            batch = self._batches[int(number)].select(list(columns))
            pieces.append(pa.Table.from_batches([batch.take(pa.array(ordinals[at] - number * _BATCH_ROWS))]))
            places.append(at)
        if not pieces:
            return wanted.empty_table()
        back = np.argsort(np.concatenate(places), kind="stable")
        return pa.concat_tables(pieces).unify_dictionaries().take(pa.array(back))

    def mask(self, expression: pc.Expression) -> NDArray[np.bool_]:
        """Which vectors match a filter."""
        masks = [self._mask_of(batch, expression) for batch in self._batches]
        return np.concatenate(masks)

    def find(self, doc_id: str) -> NDArray[np.int64]:
        """The vectors of a document."""
        found = [
            np.flatnonzero(pc.equal(batch["doc_id"], doc_id).to_numpy(zero_copy_only=False)) + i * _BATCH_ROWS
            for i, batch in enumerate(self._batches)
        ]
        return np.concatenate(found)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows in order."""
        for batch in self._batches:
            yield batch.select(list(columns))

    @staticmethod
    def _mask_of(batch: pa.RecordBatch, expression: pc.Expression) -> NDArray[np.bool_]:
        matches = evaluate(expression, pa.Table.from_batches([batch]))
        mask: NDArray[np.bool_] = matches.fill_null(False).to_numpy().astype(bool)
        return mask


def _even_batches(table: pa.Table) -> list[pa.RecordBatch]:
    return table.combine_chunks().to_batches(max_chunksize=_BATCH_ROWS) or [
        pa.RecordBatch.from_pylist([], schema=table.schema)
    ]


def _mapped(file: Path, copy: Path) -> list[pa.RecordBatch]:
    """The batches of an uncompressed copy beside the cache; made once, whole or not at all."""
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}.partial")
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        options = pa.ipc.IpcWriteOptions(unify_dictionaries=True)
        # Plain strings in place of the dictionary, which an Arrow file could not extend batch by batch.
        schema = pa.schema([pa.field(f.name, pa.string()) if f.name == "fragment" else f for f in parquet.schema_arrow])
        with pa.ipc.new_file(str(partial), schema, options=options) as writer:
            for batch in _rebatched(parquet, schema):
                writer.write_batch(batch)
        os.replace(partial, copy)
    reader = pa.ipc.open_file(pa.memory_map(str(copy)))
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def _rebatched(parquet: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    pending = schema.empty_table()
    for batch in parquet.iter_batches(_BATCH_ROWS):
        pending = pa.concat_tables([pending, pa.Table.from_batches([batch]).cast(schema)])
        while pending.num_rows >= _BATCH_ROWS:
            yield pending.slice(0, _BATCH_ROWS).combine_chunks().to_batches()[0]
            pending = pending.slice(_BATCH_ROWS)
    if pending.num_rows:
        yield pending.combine_chunks().to_batches()[0]
