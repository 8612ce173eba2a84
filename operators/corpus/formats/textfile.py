"""Read a text file as one document."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from operators.corpus.formats.raw import Columns, bad_rows
from operators.corpus.formats.streams import Pace, decompressed, metered
from operators.storage import Location, open_input
from operators.work.names import RAW_ROW


def read_text(location: Location, compression: str | None, columns: Columns, pace: Pace) -> Iterator[pa.Table]:
    """One file is one document; it has the columns `path`, `name` and `text`."""
    with open_input(location) as raw:
        content = decompressed(metered(raw, pace), compression).read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield bad_rows([0], "invalid_utf8", f"the file is not valid UTF-8 at byte {error.start}")
        return
    values = {"path": location.url, "name": location.name, "text": text}
    table = {RAW_ROW: pa.array([0], pa.int64())}
    table |= {name: pa.array([values[name]], pa.string()) for name in columns.names if name in values}
    yield pa.table(table)
