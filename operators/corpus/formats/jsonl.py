"""Read JSON lines: blocks of whole lines by Arrow's parser, and line by line where a block holds anything odd.

Both ways give the same rows for the same lines, so what a row becomes never depends on its neighbours.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json
from numpy.typing import NDArray

from operators.corpus.formats.raw import Columns, one_line
from operators.corpus.formats.streams import BLOCK_BYTES, Pace, decompressed, metered
from operators.storage import Location, open_input
from operators.work.fragment import Extent
from operators.work.names import RAW_MESSAGE, RAW_REASON, RAW_ROW


def read_jsonl(
    location: Location, compression: str | None, extent: Extent, columns: Columns, pace: Pace
) -> Iterator[pa.Table]:
    """Raw rows of the lines that begin in the extent; blank lines are no rows but count as such in row numbers."""
    row = extent.first_row
    id_type: pa.DataType = pa.string()
    with open_input(location) as raw:
        stream = decompressed(metered(raw, pace), compression)
        for offset, block in line_blocks(stream, extent.start, extent.end, pace.block_bytes):
            starts = np.concatenate([[0], np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1])
            starts = starts[starts < len(block)]
            if offset == 0:
                block = block.removeprefix(codecs.BOM_UTF8)
            numbers = offset + starts if extent.first_row < 0 else np.arange(row, row + len(starts), dtype=np.int64)
            table, id_type = _parse_block(block, len(starts), columns, id_type)
            if table is not None:
                yield table.append_column(RAW_ROW, pa.array(numbers, pa.int64()))
            else:
                yield from _parse_lines(block, numbers, columns)
            row += len(starts)


def line_blocks(stream: BinaryIO, start: int, end: int, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, with their offsets, that begin in bytes [start, end), or from start on where end is -1.

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
    if not (_is_utf8(block) and _is_one_value_a_line(block)):
        return None, id_type
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


def _is_utf8(block: bytes) -> bool:
    """Whether all bytes are valid, also those of fields that nobody reads."""
    offsets = pa.array([0, len(block)], pa.int64()).buffers()[1]
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(block)]).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_one_value_a_line(block: bytes) -> bool:
    """Whether every line begins with `{` and ends with `}`: no JSON value can go on across such a line end.

    Then as many rows as lines means one object on each; else two on one line could make up for a blank line.
    """
    text = block.removesuffix(b"\n").removesuffix(b"\r")
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return False
    return text.count(b"\n") == text.count(b"}\n{") + text.count(b"}\r\n{")


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
    table = {RAW_ROW: pa.array(rows, pa.int64())}
    table |= {RAW_REASON: pa.array(reasons, pa.string()), RAW_MESSAGE: pa.array(messages, pa.string())}
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
        # Arrow takes some lines that are no strict JSON (NaN, deep nesting); what is good in a block is good alone.
        table, _ = _parse_block(line, 1, columns, pa.string())
        if table is None:
            return {}, "malformed_json", f"the line does not parse: {one_line(error)}"
        return table.to_pylist()[0], None, None
    if not isinstance(record, dict):
        return {}, "malformed_json", f"the line holds a {type(record).__name__}; expected an object"
    for name in columns.text:
        value = record.get(name)
        if value is not None and not isinstance(value, str):
            return record, "wrong_type", f"the text column {name!r} holds a {type(value).__name__}; expected a string"
    if columns.id:
        identity = record.get(columns.id)
        if isinstance(identity, float):
            identity = record[columns.id] = _exact_number(line, columns.id)
        if identity is not None and (isinstance(identity, bool) or not isinstance(identity, (str, int))):
            kind = type(identity).__name__
            return record, "wrong_type", f"the id column {columns.id!r} holds a {kind}; expected a string or integer"
    return record, None, None


def _exact_number(line: bytes, name: str) -> object:
    """The field as Python's own parser reads it: orjson makes floats of integers beyond 64 bits."""
    try:
        return json.loads(line)[name]
    except (ValueError, RecursionError):  # more digits, or levels, than Python takes
        return None


def _column_of(values: list[object], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        return pa.array([v if v is None or isinstance(v, str) else _as_text(v) for v in values], pa.string())
    return pa.array([_value_of(value, kind) for value in values], kind)


def _value_of(value: object, kind: pa.DataType) -> object:
    """The value where it is of this kind, as Arrow's parser would have it, else None."""
    if isinstance(value, bool) or value is None:
        return value if pa.types.is_boolean(kind) else None
    if pa.types.is_floating(kind) and isinstance(value, (int, float)):
        return float(value)
    try:
        converted = pa.scalar(value, kind).as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return None
    return converted if converted == value else None  # Arrow cuts 1.5 to 1 without a word


def _as_text(value: object) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else orjson.dumps(value).decode()
