"""Read one file's rows, format by format, as Arrow tables of raw columns.

Each reader yields tables with `source_row` (0-based in the file) and the wanted columns, plus `reason` and `message` for
rows that it found bad. A file that breaks in the middle keeps the rows before the break; the break itself is a rejected
row. Memory is bounded by one block (4 MiB, or the longest line) or one Parquet batch.
"""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.corpus.source import Source, format_of
from operators.errors import InputError
from operators.fragment import Extent
from operators.storage import Location, locate, open_input

BLOCK_BYTES = 4 << 20
BATCH_ROWS = 4096


@dataclass(slots=True)
class Pace:
    """How much is read at a time, and how far into its files reading is; a sample goes in small steps to be exact."""

    block_bytes: int = BLOCK_BYTES
    batch_rows: int = BATCH_ROWS
    step_bytes: int | None = None  # most bytes taken from storage at once; None = as asked for
    bytes_read: float = 0  # of storage; of Parquet, the file's bytes in proportion to its rows

# What a broken or unreadable file raises: Arrow's errors, a bad gzip or zstd stream, text that is not UTF-8.
# InputError (access denied, bucket gone) is not among them: that concerns the run, not the file.
READ_FAULTS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError, csv.Error, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns to read, with the type that each kept one has in the output."""

    text: tuple[str, ...]
    id: str | None
    keep: pa.Schema

    @staticmethod
    def of(source: Source, keep: pa.Schema) -> Columns:
        """The columns that `source` and the kept ones need."""
        return Columns(source.text_columns, source.id, keep)

    @property
    def names(self) -> tuple[str, ...]:
        """Every wanted column once."""
        return tuple(dict.fromkeys((*self.text, *((self.id,) if self.id else ()), *self.keep.names)))


def read_extent(extent: Extent, source: Source, columns: Columns, pace: Pace | None = None) -> Iterator[pa.Table]:
    """Raw rows of one extent; never raises for a broken file, whose loss is a rejected row instead."""
    pace = pace or Pace()
    described = format_of(extent.file.path, source.format)
    assert described is not None, "the listing leaves out files without a format"
    kind, compression = described
    location = locate(extent.file.path, source.storage_options)
    next_row = max(extent.first_row, 0)
    try:
        if kind == "parquet":
            tables = _read_parquet(location, extent, columns, pace)
        elif kind == "jsonl":
            tables = _read_jsonl(location, compression, extent, columns, pace)
        elif kind == "text":
            tables = _read_text(location, compression, columns, pace)
        else:
            tables = _read_csv(location, compression, columns, pace, tab=kind == "tsv")
        for table in tables:
            if table.num_rows:
                next_row = table["source_row"][-1].as_py() + 1
                yield table
    except READ_FAULTS as error:
        _raise_if_about_the_run(error, location)
        yield _bad_row(next_row, "unreadable_file", f"reading stopped here: {_one_line(error)}")


def _raise_if_about_the_run(error: BaseException, location: Location) -> None:
    """A vanished or forbidden object, or a storage that does not answer, is no fault of the file's content."""
    if isinstance(error, FileNotFoundError):
        raise InputError(
            f"run again: {location.url} was there when the source was listed and is gone now; the next run lists anew"
        ) from error
    if isinstance(error, (PermissionError, TimeoutError, ConnectionError)):
        raise error
    # botocore and s3fs wrap what the server said in OSErrors with an errno; a decoder's errors have none.
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _bad_row(row: int, reason: str, message: str) -> pa.Table:
    return _bad_rows([row], reason, message)


def _bad_rows(rows: Iterable[int], reason: str, message: str) -> pa.Table:
    source_row = pa.array(rows, pa.int64())
    count = len(source_row)
    return pa.table(
        {
            "source_row": source_row,
            "reason": pa.array([reason] * count, pa.string()),
            "message": pa.array([message] * count, pa.string()),
        }
    )


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# --- Parquet -----------------------------------------------------------------------------------------------------


def _read_parquet(location: Location, extent: Extent, columns: Columns, pace: Pace) -> Iterator[pa.Table]:
    with open_input(location) as stream:
        file = pq.ParquetFile(stream)
        present = [name for name in columns.names if name in file.schema_arrow.names]
        end = file.num_row_groups if extent.end < 0 else extent.end
        row = max(extent.first_row, 0)
        for group in range(extent.start, end):
            group_rows = file.metadata.row_group(group).num_rows
            done = 0
            try:
                for batch in file.iter_batches(pace.batch_rows, row_groups=[group], columns=present):
                    numbers = pa.array(np.arange(row + done, row + done + batch.num_rows, dtype=np.int64))
                    yield pa.Table.from_batches([batch]).append_column("source_row", numbers)
                    done += batch.num_rows
                    pace.bytes_read += extent.file.size * batch.num_rows / file.metadata.num_rows
            except READ_FAULTS as error:
                _raise_if_about_the_run(error, location)
                lost = range(row + done, row + group_rows)
                yield _bad_rows(lost, "unreadable_rows", f"row group {group} does not decode: {_one_line(error)}")
            row += group_rows


# --- JSON lines --------------------------------------------------------------------------------------------------


def _read_jsonl(
    location: Location, compression: str | None, extent: Extent, columns: Columns, pace: Pace
) -> Iterator[pa.Table]:
    row = extent.first_row
    id_type: pa.DataType = pa.string()
    with open_input(location) as raw:
        stream = decompressed(_Metered(raw, pace), compression)
        for offset, block in line_blocks(stream, extent.start, extent.end, pace.block_bytes):
            starts = np.concatenate([[0], np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1])
            starts = starts[starts < len(block)]
            numbers = offset + starts if extent.first_row < 0 else np.arange(row, row + len(starts), dtype=np.int64)
            table, id_type = _parse_block(block, len(starts), columns, id_type)
            if table is not None:
                yield table.append_column("source_row", pa.array(numbers, pa.int64()))
            else:
                yield from _parse_lines(block, numbers, columns)
            row += len(starts)


def line_blocks(
    stream: BinaryIO, start: int, end: int, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines with their offsets: lines that begin in bytes [start, end), or from start on where end is -1.

    `stream` may be unseekable where start is 0.
    """
    position, rest = start, b""
    if start > 0:
        # A line that begins before `start` belongs to the extent before; one byte back tells whether one begins there.
        stream.seek(start - 1)
        position = start - 1
        while (newline := (block := stream.read(block_bytes)).find(b"\n")) < 0:
            if not block:
                return
            position += len(block)
        position, rest = position + newline + 1, block[newline + 1 :]
    pieces = [rest]  # of a line longer than a block, joined once
    while end < 0 or position < end:
        block = stream.read(block_bytes)
        cut = block.rfind(b"\n")
        if block and cut < 0:
            pieces.append(block)
            continue
        lines, pieces = b"".join(pieces) + block[: cut + 1], [block[cut + 1 :]]
        if 0 <= end < position + len(lines):
            last = lines.find(b"\n", max(end - 1 - position, 0))
            lines = lines[: last + 1] if last >= 0 else lines
        if lines:
            yield position, lines
        position += len(lines)
        if not block:
            return


def _parse_block(
    block: bytes, num_lines: int, columns: Columns, id_type: pa.DataType
) -> tuple[pa.Table | None, pa.DataType]:
    """Parse whole lines in one go; None where any line is not as expected, so that they are looked at one by one."""
    other = pa.int64() if id_type == pa.string() else pa.string()
    for attempt in (id_type, other) if columns.id and columns.id not in columns.text else (id_type,):
        fields = {name: pa.string() for name in columns.text} | {kept.name: kept.type for kept in columns.keep}
        if columns.id and columns.id not in columns.text:
            fields[columns.id] = attempt
        try:
            table = pyarrow.json.read_json(
                pa.BufferReader(block),
                read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=pyarrow.json.ParseOptions(
                    explicit_schema=pa.schema(list(fields.items())), unexpected_field_behavior="ignore"
                ),
            )
            table.validate(full=True)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        if table.num_rows == num_lines:
            return table, attempt
        break  # blank lines, which the parser passes over silently
    return None, id_type


def _parse_lines(block: bytes, numbers: NDArray[np.int64], columns: Columns) -> Iterator[pa.Table]:
    """Parse line by line: blank lines are no rows, and a bad line is a rejected row."""
    rows: list[int] = []
    reasons: list[str | None] = []
    messages: list[str | None] = []
    values: dict[str, list[object]] = {name: [] for name in columns.names}
    lines = block.split(b"\n")
    for number, line in zip(numbers.tolist(), lines[: len(numbers)], strict=True):
        if not line.strip():
            continue
        record, reason, message = _parse_line(line, columns)
        rows.append(number)
        reasons.append(reason)
        messages.append(message)
        for name, column in values.items():
            column.append(record.get(name))
    table = {"source_row": pa.array(rows, pa.int64())}
    table |= {"reason": pa.array(reasons, pa.string()), "message": pa.array(messages, pa.string())}
    for name, column in values.items():
        is_kept_only = name not in columns.text and name != columns.id
        kind = columns.keep.field(name).type if is_kept_only else pa.string()
        table[name] = _column_of(column, kind)
    yield pa.table(table)


def _parse_line(line: bytes, columns: Columns) -> tuple[dict[str, object], str | None, str | None]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as bad:
            return {}, "invalid_utf8", f"the line is not valid UTF-8 at byte {bad.start}"
        return {}, "malformed_json", f"the line does not parse: {_one_line(error)}"
    if not isinstance(record, dict):
        return {}, "malformed_json", f"the line holds a {type(record).__name__}; expected an object"
    for name in columns.text:
        value = record.get(name)
        if value is not None and not isinstance(value, str):
            return record, "wrong_type", f"the text column {name!r} holds a {type(value).__name__}; expected a string"
    if columns.id:
        identity = record.get(columns.id)
        if identity is not None and (isinstance(identity, bool) or not isinstance(identity, (str, int))):
            kind = type(identity).__name__
            return record, "wrong_type", f"the id column {columns.id!r} holds a {kind}; expected a string or integer"
    return record, None, None


def _column_of(values: list[object], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        return pa.array([v if v is None or isinstance(v, str) else _as_text(v) for v in values], pa.string())
    converted = []
    for value in values:
        try:
            converted.append(pa.scalar(value, kind).as_py())
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            converted.append(None)
    return pa.array(converted, kind)


def _as_text(value: object) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else orjson.dumps(value).decode()


# --- CSV, TSV and text files -------------------------------------------------------------------------------------


def _read_csv(
    location: Location, compression: str | None, columns: Columns, pace: Pace, tab: bool
) -> Iterator[pa.Table]:
    """CSV as RFC 4180; TSV with no quoting, as IANA's text/tab-separated-values says."""
    csv.field_size_limit(sys.maxsize)
    with open_input(location) as raw:
        # Undecodable bytes become lone surrogates, so that one bad row does not cost the file.
        text = io.TextIOWrapper(decompressed(_Metered(raw, pace), compression), "utf-8-sig", errors="surrogateescape", newline="")
        if tab:
            reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(text, strict=True)
        header = next(reader, None)
        if header is None:
            return
        positions = {name: header.index(name) for name in columns.names if name in header}
        row = 0
        while batch := list(itertools.islice(_records(reader), pace.batch_rows)):
            yield _csv_table(batch, row, len(header), positions)
            row += len(batch)


def _records(reader: Iterator[list[str]]) -> Iterator[list[str] | csv.Error]:
    """Records, blank lines left out; a record that does not parse comes as its error."""
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error
            continue
        if record:
            yield record


def _csv_table(batch: list[list[str] | csv.Error], row: int, width: int, positions: dict[str, int]) -> pa.Table:
    reasons: list[str | None] = [None] * len(batch)
    messages: list[str | None] = [None] * len(batch)
    values: dict[str, list[str | None]] = {name: [None] * len(batch) for name in positions}
    for number, record in enumerate(batch):
        if isinstance(record, csv.Error):
            reasons[number], messages[number] = "malformed_csv", _one_line(record)
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
    table = {"source_row": pa.array(np.arange(row, row + len(batch), dtype=np.int64))}
    table |= {"reason": pa.array(reasons, pa.string()), "message": pa.array(messages, pa.string())}
    return pa.table(table | {name: pa.array(column, pa.string()) for name, column in values.items()})


def _is_encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_text(location: Location, compression: str | None, columns: Columns, pace: Pace) -> Iterator[pa.Table]:
    """One file is one document; it has the columns `path`, `name` and `text`."""
    with open_input(location) as raw:
        content = decompressed(_Metered(raw, pace), compression).read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield _bad_row(0, "invalid_utf8", f"the file is not valid UTF-8 at byte {error.start}")
        return
    values = {"path": location.url, "name": location.name, "text": text}
    table = {"source_row": pa.array([0], pa.int64())}
    table |= {name: pa.array([values[name]], pa.string()) for name in columns.names if name in values}
    yield pa.table(table)


class _Metered(io.RawIOBase):
    """A stream that counts into `pace` what is read of it."""

    def __init__(self, raw: BinaryIO, pace: Pace) -> None:
        self._raw, self._pace = raw, pace

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if size is None or size < 0:
            block = self._raw.read()
        else:
            block = self._raw.read(min(size, self._pace.step_bytes or size))
        self._pace.bytes_read += len(block)
        return block

    read1 = read


def decompressed(raw: BinaryIO, compression: str | None) -> BinaryIO:
    if compression is None:
        return raw
    # Arrow's stream raises on a truncated end, for gzip and for zstd; it reads members one after the other.
    return cast(BinaryIO, _Salvaging(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)))


class _Salvaging(io.RawIOBase):
    """A decompressed stream that gives all it can before it raises: Arrow's own loses the whole read in which it fails."""

    _PIECE_BYTES = 4096

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._fault is not None:
            raise self._fault
        pieces: list[bytes] = []
        left = size if size is not None and size >= 0 else sys.maxsize
        while left:
            try:
                piece = self._stream.read(min(left, self._PIECE_BYTES))
            except READ_FAULTS as error:
                if not pieces:
                    raise
                self._fault = error
                break
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    read1 = read
