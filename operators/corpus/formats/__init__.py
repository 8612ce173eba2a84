"""Read one file's rows, format by format, as Arrow tables of raw columns.

Each reader yields tables with the wanted columns, the 0-based row in the file and, for rows that it found bad, reason
and message, under names that are ours alone (operators.work.names). A file that breaks in the middle keeps the rows
before the break; the break itself is a rejected row. Memory is bounded by one block (4 MiB, or the longest line) or one
Parquet batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from operators.corpus.formats.delimited import read_csv
from operators.corpus.formats.imagefile import read_image
from operators.corpus.formats.jsonl import read_jsonl
from operators.corpus.formats.parquet import read_parquet
from operators.corpus.formats.raw import READ_FAULTS, Columns, bad_rows, one_line, raise_if_about_the_run
from operators.corpus.formats.streams import Pace
from operators.corpus.formats.textfile import read_text
from operators.corpus.source import Source, format_of
from operators.storage import locate
from operators.work.fragment import Extent
from operators.work.names import RAW_ROW

__all__ = ["READ_FAULTS", "Columns", "Pace", "read_extent"]


def read_extent(extent: Extent, source: Source, columns: Columns, pace: Pace | None = None) -> Iterator[pa.Table]:
    """Raw rows of one extent; never raises for a broken file, whose loss is a rejected row instead."""
    pace = pace or Pace()
    described = format_of(extent.file.path, source.format)
    assert described is not None, "the listing leaves out files without a format"
    kind, compression = described
    location = locate(extent.file.path, source.storage_options)
    next_row, before = max(extent.first_row, 0), pace.bytes_read
    try:
        if kind == "parquet":
            tables = read_parquet(location, extent, columns, pace)
        elif kind == "jsonl":
            tables = read_jsonl(location, compression, extent, columns, pace)
        elif kind == "text":
            tables = read_text(location, compression, columns, pace)
        elif kind == "image":
            tables = read_image(location, extent, columns, pace)
        else:
            tables = read_csv(location, compression, columns, pace, tab=kind == "tsv")
        for table in tables:
            if table.num_rows:
                next_row = table[RAW_ROW][-1].as_py() + 1
                yield table
    except READ_FAULTS as error:
        raise_if_about_the_run(error, location)
        pace.unreadable_files += 1
        pace.lost_bytes += max(0, round(extent.file.size * extent.share - (pace.bytes_read - before)))
        yield bad_rows([next_row], "unreadable_file", f"reading stopped here: {one_line(error)}")
