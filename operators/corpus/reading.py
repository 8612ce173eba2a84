"""Read a unit of the source and cut it into fragments.

A unit is read once, from its start to its end, in bounded memory: one fragment plus one block. Cutting depends on the
rows alone, so every run cuts the same unit the same way; fragments that are committed already are passed over.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.corpus.formats import Columns, Pace, read_extent
from operators.corpus.rows import ids_digest, make_rows, reject_positions, split_rejected
from operators.corpus.source import Source
from operators.work.fragment import Counts, Fragment, FragmentBatch, Unit

DUPLICATE_ID = "duplicate_id"  # the reason of a row whose id another row had first
IMAGE_BATCH_ROWS = 64  # rows read at a time where they hold images, of which 64 are some 10 MB


def read_fragments(
    unit: Unit,
    source: Source,
    keep: pa.Schema,
    skip_parts: Collection[int] = (),
    duplicate_positions: NDArray[np.int64] | None = None,
) -> Iterator[FragmentBatch]:
    """The unit's fragments in order, without those in `skip_parts`.

    `duplicate_positions` are the places (0-based, counted over the whole unit) of rows whose id came before elsewhere.
    """
    started = time.perf_counter()
    pace = Pace()
    rows = read_rows(unit, source, keep, pace)
    if duplicate_positions is not None and len(duplicate_positions):
        rows = _without_duplicates(rows, duplicate_positions)
    cuts = _cut(_metered(rows, pace), keep, source.max_rows, source.max_bytes)
    unreadable_files = lost_bytes = 0  # entered already
    for part, (table, last, source_bytes) in enumerate(cuts):
        # What broke since the cut before: the same in every run, since every run reads the unit the same way.
        broken, lost = pace.unreadable_files - unreadable_files, pace.lost_bytes - lost_bytes
        unreadable_files, lost_bytes = pace.unreadable_files, pace.lost_bytes
        if part in skip_parts:
            started = time.perf_counter()
            continue
        good, rejected = split_rejected(table)
        counts = Counts(
            rows=table.num_rows,
            rejected=rejected.num_rows,
            source_bytes=round(source_bytes),
            unreadable_files=broken,
            lost_bytes=lost,
        )
        batch = FragmentBatch(Fragment(unit, part, last), good, rejected, counts, ids_digest(table))
        yield batch.spent("read", time.perf_counter() - started)
        started = time.perf_counter()


def read_rows(unit: Unit, source: Source, keep: pa.Schema, pace: Pace | None = None) -> Iterator[pa.Table]:
    """Every row of the unit in order, good or rejected (see `operators.corpus.rows`), in tables of a few thousand."""
    columns = Columns.of(source, keep)
    pace = pace or Pace()
    if source.image is not None:
        pace.batch_rows = min(pace.batch_rows, IMAGE_BATCH_ROWS)
    for extent in unit.extents:
        for raw in read_extent(extent, source, columns, pace):
            yield make_rows(raw, extent.file.path, source, keep)


def read_sample(unit: Unit, source: Source, keep: pa.Schema, rows: int) -> tuple[FragmentBatch, int]:
    """The first rows of a unit, `rows` or a few more, and how many bytes of storage they took (at its end all)."""
    pace = Pace(block_bytes=16 << 10, batch_rows=max(1, min(rows, 1024)), step_bytes=4 << 10)
    tables: list[pa.Table] = []
    num_rows, is_whole = 0, True
    for table in read_rows(unit, source, keep, pace):
        if num_rows >= rows:
            is_whole = False
            break
        tables.append(table)
        num_rows += table.num_rows
        bytes_read = pace.bytes_read
    table = pa.concat_tables(tables) if tables else _rows_schema(keep).empty_table()
    good, rejected = split_rejected(table)
    counts = Counts(rows=table.num_rows, rejected=rejected.num_rows)
    batch = FragmentBatch(Fragment(unit, 0, is_whole), good, rejected, counts)
    return batch, unit.size_bytes if is_whole else min(round(bytes_read), unit.size_bytes - 1)


def empty_rows(keep: pa.Schema) -> pa.Table:
    """A table of good rows that has none."""
    fixed = [("doc_id", pa.string()), ("source_path", pa.string()), ("source_row", pa.int64()), ("text", pa.string())]
    return pa.schema([pa.field(n, t) for n, t in fixed] + list(keep)).empty_table()


def _without_duplicates(rows: Iterator[pa.Table], positions: NDArray[np.int64]) -> Iterator[pa.Table]:
    start = 0
    for table in rows:
        inside = positions[(positions >= start) & (positions < start + table.num_rows)] - start
        start += table.num_rows
        yield reject_positions(table, inside, DUPLICATE_ID, "the id came before; the first one is kept")


def _metered(rows: Iterator[pa.Table], pace: Pace) -> Iterator[tuple[pa.Table, float]]:
    """Each table with the bytes of storage that were read for it."""
    before = pace.bytes_read
    for table in rows:
        yield table, pace.bytes_read - before
        before = pace.bytes_read


def _cut(
    rows: Iterator[tuple[pa.Table, float]], keep: pa.Schema, max_rows: int, max_bytes: int
) -> Iterator[tuple[pa.Table, bool, float]]:
    """Fragments of a stream of rows, whether each is the last, and its share of the bytes that the stream comes with.

    An empty stream is one empty fragment.
    """
    pending: list[pa.Table] = []
    num_rows = num_bytes = 0
    source_bytes = 0.0
    complete: tuple[pa.Table, float] | None = None  # held back until it is known whether more follows
    schema: pa.Schema | None = None
    for table, table_bytes in rows:
        schema = table.schema
        source_bytes += 0.0 if table.num_rows else table_bytes
        row_bytes = table_bytes / max(table.num_rows, 1)
        while table.num_rows:
            if complete is not None:
                yield complete[0], False, complete[1]
                complete = None
            take = _fitting_rows(table, max_rows - num_rows, max_bytes - num_bytes)
            head, table = table.slice(0, take), table.slice(take)
            pending.append(head)
            num_rows += head.num_rows
            num_bytes += int(content_bytes(head).sum())
            source_bytes += head.num_rows * row_bytes
            if num_rows >= max_rows or num_bytes >= max_bytes:
                complete, pending = (pa.concat_tables(pending), source_bytes), []
                num_rows, num_bytes, source_bytes = 0, 0, 0.0
    if complete is not None:
        yield complete[0], True, complete[1]
    elif pending:
        yield pa.concat_tables(pending), True, source_bytes
    else:
        yield (schema or _rows_schema(keep)).empty_table(), True, source_bytes


def _rows_schema(keep: pa.Schema) -> pa.Schema:
    reasons = [pa.field(name, pa.string()) for name in ("reason", "message")]
    return pa.schema([*list(empty_rows(pa.schema([])).schema), *reasons, *keep])


def _fitting_rows(table: pa.Table, rows_left: int, bytes_left: int) -> int:
    """How many rows belong to the fragment being filled: up to the one that reaches either limit, at least one."""
    reached = int(np.searchsorted(np.cumsum(content_bytes(table)), bytes_left)) + 1
    return int(max(1, min(rows_left, reached, table.num_rows)))


def content_bytes(table: pa.Table) -> NDArray[np.int64]:
    """Bytes of text and image of each row."""
    lengths: NDArray[np.int64] = pc.binary_length(table["text"]).fill_null(0).to_numpy().astype(np.int64)
    if "image" in table.column_names:
        lengths = lengths + pc.binary_length(pc.struct_field(table["image"], "bytes")).fill_null(0).to_numpy()
    return lengths
