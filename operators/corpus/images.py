"""Images of a corpus, as bytes or as the place where they are, in one form whatever the source wrote.

    binary | {bytes, path} (as Hugging Face datasets write it) | path | URL | data: URL   ->   IMAGE_TYPE

A path is taken from the folder of the file that names it. Bytes travel with the row; what is only named is fetched
when it is prepared for the model (operators.corpus.image_fetching): listing, counting and verifying open no image.
"""

from __future__ import annotations

import base64
import binascii
import posixpath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

IMAGE_TYPE = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
MAX_IMAGE_BYTES = 256 << 20  # a larger file is hardly a photograph, and would be held in memory whole


class BadImage(Exception):
    """An image that gets no vector: the reason, as it stands in rejected/, and a message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold images."""
    if pa.types.is_struct(kind):
        names = {field.name for field in kind}
        return {"bytes", "path"} <= names
    return bool(_is_binary(kind) or _is_string(kind) or pa.types.is_null(kind))


def image_column(raw: pa.Table, name: str, source_path: str) -> tuple[pa.Array, NDArray[np.bool_]]:
    """A raw column as IMAGE_TYPE, null where a row has no image, and which rows hold something else."""
    if name not in raw.column_names:
        return pa.nulls(raw.num_rows, IMAGE_TYPE), np.zeros(raw.num_rows, bool)
    column = raw[name].combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not holds_images(column.type):
        return pa.nulls(len(column), IMAGE_TYPE), np.ones(len(column), bool)
    if _is_binary(column.type):
        return _structs(column.cast(pa.large_binary()), pa.nulls(len(column), pa.string())), np.zeros(len(column), bool)
    if pa.types.is_struct(column.type):
        data = pc.struct_field(column, "bytes").cast(pa.large_binary())
        named = pc.if_else(pc.is_null(data), pc.struct_field(column, "path").cast(pa.string()), None)
    else:
        data, named = pa.nulls(len(column), pa.large_binary()), column.cast(pa.string())
    return _resolved(data, named, source_path)


def place_of(path: str, source_path: str) -> str:
    """Where an image is that the file `source_path` names: a URL as it is, a path from that file's folder.

    Raises ValueError for a path of the machine itself that comes from a file that is not on it.
    """
    is_local = "://" not in source_path
    if "://" in path:
        if not is_local and path.startswith(("file://", "local://")):
            raise ValueError("a file of this machine, named by one that is elsewhere")
        return path
    if path.startswith("/"):
        if not is_local:
            raise ValueError("an absolute path, in a file that is not on this machine")
        return path
    scheme, separator, rest = source_path.rpartition("://")
    folder = posixpath.normpath(posixpath.join(posixpath.dirname(rest), path))
    if folder.startswith(".."):
        raise ValueError("a path that leaves the storage")
    return f"{scheme}{separator}{folder}"


def _resolved(data: pa.Array, named: pa.Array, source_path: str) -> tuple[pa.Array, NDArray[np.bool_]]:
    contents, places = data.to_pylist(), named.to_pylist()
    bad = np.zeros(len(places), bool)
    for row, path in enumerate(places):
        if not path:
            places[row] = None
            continue
        try:
            if path.startswith("data:"):
                contents[row], places[row] = _data_url(path), None
            else:
                places[row] = place_of(path, source_path)
        except ValueError:
            places[row], bad[row] = None, True
    return _structs(pa.array(contents, pa.large_binary()), pa.array(places, pa.string())), bad


def _data_url(url: str) -> bytes:
    head, comma, payload = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError("a data: URL that is not base64")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ValueError("a data: URL that is not base64") from error


def _structs(data: pa.Array, places: pa.Array) -> pa.StructArray:
    missing = pc.and_(pc.is_null(data), pc.is_null(places))
    return pa.StructArray.from_arrays([data, places], fields=list(IMAGE_TYPE), mask=missing)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
