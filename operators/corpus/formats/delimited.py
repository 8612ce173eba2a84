"""Read CSV as RFC 4180, and TSV with no quoting, as IANA's text/tab-separated-values says."""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from operators.corpus.formats.raw import READ_FAULTS, Columns, one_line
from operators.corpus.formats.streams import Pace, decompressed, metered
from operators.storage import Location, open_input
from operators.work.names import RAW_MESSAGE, RAW_REASON, RAW_ROW


def read_csv(
    location: Location, compression: str | None, columns: Columns, pace: Pace, tab: bool
) -> Iterator[pa.Table]:
    """Raw rows, numbered by record: the header and blank lines do not count."""
    csv.field_size_limit(sys.maxsize)
    with open_input(location) as raw:
        # Undecodable bytes become lone surrogates, so that one bad row does not cost the file.
        text = io.TextIOWrapper(
            decompressed(metered(raw, pace), compression), "utf-8-sig", errors="surrogateescape", newline=""
        )
        lines = _Lines(text)
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tab else csv.reader(lines, strict=True)
        header = next((record for record in reader if record), None)
        if header is None:
            return
        positions = {name: header.index(name) for name in columns.names if name in header}
        records, row = _records(reader, lines, len(header), pace), 0
        while True:
            batch, fault = _take(records, pace.batch_rows)
            if batch:
                yield _csv_table(batch, row, len(header), positions)
                row += len(batch)
            if fault is not None:
                raise fault
            if not batch:
                return


def _take(records: Iterator[list[str] | csv.Error], count: int) -> tuple[list[list[str] | csv.Error], Exception | None]:
    """The next records and, where the file breaks before there are `count`, what stopped them."""
    batch: list[list[str] | csv.Error] = []
    try:
        batch.extend(itertools.islice(records, count))  # extends one by one, so what came before a fault stays
    except READ_FAULTS as error:
        return batch, error
    return batch, None


class _Lines:
    """The lines of a text, with the characters of those given since a record began beyond its first line."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.begin_record()

    def begin_record(self) -> None:
        """Count from here."""
        self._is_first, self.swallowed = True, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._text)
        self.swallowed += 0 if self._is_first else len(line)
        self._is_first = False
        return line


def _records(reader: Iterator[list[str]], lines: _Lines, width: int, pace: Pace) -> Iterator[list[str] | csv.Error]:
    """Records, blank lines left out; a record that does not parse comes as its error.

    A bad one that goes on over several lines, as behind a quote that nothing closes, has taken rows with it: they are
    lost.
    """
    while True:
        lines.begin_record()
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            pace.lost_bytes += lines.swallowed
            yield csv.Error(f"{error}; {lines.swallowed:,} more characters went with it") if lines.swallowed else error
            continue
        if record:
            pace.lost_bytes += lines.swallowed if len(record) != width else 0
            yield record


def _csv_table(batch: list[list[str] | csv.Error], row: int, width: int, positions: dict[str, int]) -> pa.Table:
    reasons: list[str | None] = [None] * len(batch)
    messages: list[str | None] = [None] * len(batch)
    values: dict[str, list[str | None]] = {name: [None] * len(batch) for name in positions}
    for number, record in enumerate(batch):
        if isinstance(record, csv.Error):
            reasons[number], messages[number] = "malformed_csv", one_line(record)
            continue
        if len(record) != width:
            reasons[number] = "malformed_csv"
            messages[number] = f"the row has {len(record)} fields; the header has {width}"
            continue
        for name, position in positions.items():
            value = record[position]
            if value.isascii() or _is_encodable(value):
                values[name][number] = value
            else:
                reasons[number] = "invalid_utf8"
                messages[number] = f"column {name!r} is not valid UTF-8"
    table = {RAW_ROW: pa.array(np.arange(row, row + len(batch), dtype=np.int64))}
    table |= {RAW_REASON: pa.array(reasons, pa.string()), RAW_MESSAGE: pa.array(messages, pa.string())}
    return pa.table(table | {name: pa.array(column, pa.string()) for name, column in values.items()})


def _is_encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
