"""Read an image file as one document; its bytes stay as they are until they are prepared for the model."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from operators.corpus.formats.raw import Columns, bad_rows
from operators.corpus.formats.streams import Pace, metered
from operators.corpus.images import MAX_IMAGE_BYTES
from operators.storage import Location, open_input
from operators.work.fragment import Extent
from operators.work.names import RAW_ROW

IMAGE_FILE_SCHEMA = pa.schema([("path", pa.string()), ("name", pa.string()), ("image", pa.binary())])


def read_image(location: Location, extent: Extent, columns: Columns, pace: Pace) -> Iterator[pa.Table]:
    """One file is one document; it has the columns `path`, `name` and `image`."""
    if extent.file.size > MAX_IMAGE_BYTES:
        yield bad_rows([0], "image_too_large", f"the file has {extent.file.size} bytes, more than {MAX_IMAGE_BYTES}")
        return
    with open_input(location) as raw:
        content = metered(raw, pace).read()
    values = {"path": location.url, "name": location.name, "image": content}
    table = {RAW_ROW: pa.array([0], pa.int64())}
    for field in IMAGE_FILE_SCHEMA:
        if field.name in columns.names:
            table[field.name] = pa.array([values[field.name]], field.type)
    yield pa.table(table)
