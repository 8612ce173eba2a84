"""Look at the head of the source before anything runs: are the named columns there, what types have the kept ones."""

from __future__ import annotations

import codecs
import io
import itertools
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from operators.corpus.formats import READ_FAULTS
from operators.corpus.formats.imagefile import IMAGE_FILE_SCHEMA
from operators.corpus.formats.streams import decompressed
from operators.corpus.images import holds_images
from operators.corpus.source import Source, format_of
from operators.errors import InputError
from operators.storage import locate, open_input
from operators.work.fragment import SourceFile
from operators.work.names import check_kept

_HEAD_BYTES = 1 << 20
_LONGEST_LINE = 64 << 20  # a first line up to here is read to its end
_FILES_TO_TRY = 8
# Types that a kept column of JSONL or CSV may have; anything else (objects, lists, dates) is kept as text.
_PLAIN_TYPES = (pa.int64(), pa.float64(), pa.bool_(), pa.string())


def inspect_source(files: Iterable[SourceFile], source: Source, keep: tuple[str, ...]) -> pa.Schema:
    """The types of the kept columns, after checking that the named columns exist in the first readable file.

    Raises InputError naming the missing column and those that there are, or a column of the wrong type.
    """
    check_kept(keep)
    for file in itertools.islice(files, _FILES_TO_TRY):
        try:
            head = head_schema(file, source)
        except READ_FAULTS:
            continue  # a broken file ends in rejected/, it does not stop the run
        if head is not None and len(head):
            return _check(head, file, source, keep)
    return pa.schema([(name, pa.string()) for name in keep])


def _check(head: pa.Schema, file: SourceFile, source: Source, keep: tuple[str, ...]) -> pa.Schema:
    wanted = [("source.text", name) for name in source.text_columns]
    wanted += [("source.image", source.image)] if source.image else []
    wanted += [("source.id", source.id)] if source.id else []
    for key, name in [*wanted, *(("output.keep", name) for name in keep)]:
        if name not in head.names:
            raise InputError(
                f"set {key} to a column that exists: {name!r} is not in {file.path}, which has {', '.join(head.names)}"
            )
    for name in source.text_columns:
        kind = _plain(head.field(name).type)
        if not (_is_text(kind) or pa.types.is_null(kind)):
            raise InputError(f"set source.text to a column of strings: {name!r} in {file.path} holds {kind}")
    if source.image and not holds_images(kind := _plain(head.field(source.image).type)):
        raise InputError(
            f"set source.image to a column of bytes, of structs of bytes and path, or of paths or URLs: "
            f"{source.image!r} in {file.path} holds {kind}"
        )
    if source.id:
        kind = _plain(head.field(source.id).type)
        if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise InputError(
                f"set source.id to a column of strings or integers: {source.id!r} in {file.path} holds {kind}"
            )
    return pa.schema([(name, _kept_type(head.field(name).type, file, source)) for name in keep])


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _kept_type(kind: pa.DataType, file: SourceFile, source: Source) -> pa.DataType:
    described = format_of(file.path, source.format)
    if described is not None and described[0] == "parquet" and not pa.types.is_null(kind):
        return kind
    return kind if kind in _PLAIN_TYPES else pa.string()


def head_schema(file: SourceFile, source: Source) -> pa.Schema | None:
    """Column names and types at the head of a file; None where it has no rows."""
    described = format_of(file.path, source.format)
    assert described is not None, "the listing leaves out files without a format"
    kind, compression = described
    if kind == "text":
        return pa.schema([(name, pa.string()) for name in ("path", "name", "text")])
    if kind == "image":
        return IMAGE_FILE_SCHEMA
    with open_input(locate(file.path, source.storage_options)) as stream:
        if kind == "parquet":
            return pq.ParquetFile(stream).schema_arrow
        content = decompressed(stream, compression)
        head = content.read(_HEAD_BYTES)
        while (
            kind == "jsonl" and b"\n" not in head and len(head) < _LONGEST_LINE and (more := content.read(_HEAD_BYTES))
        ):
            head += more
        if kind == "jsonl":
            return _jsonl_schema(head, is_whole=len(head) < _HEAD_BYTES)
        schema = _csv_schema(head, "\t" if kind == "tsv" else ",")
        as_read = {*source.content_columns, source.id}  # CSV has no types: these are read as they stand
        return pa.schema([pa.field(f.name, pa.string()) if f.name in as_read else f for f in schema])


def _jsonl_schema(head: bytes, is_whole: bool) -> pa.Schema | None:
    """The columns of the lines that parse; each column has the type that all of them agree on, else string."""
    lines = head.removeprefix(codecs.BOM_UTF8).split(b"\n")
    merged: dict[str, pa.DataType] = {}
    for schema in _line_schemas(lines if is_whole or len(lines) == 1 else lines[:-1]):
        for field in schema:
            # JSON has no dates: Arrow makes a timestamp of every string that looks like one.
            kind = pa.string() if pa.types.is_timestamp(field.type) else field.type
            before = merged.get(field.name, kind)
            if pa.types.is_null(before):
                before = kind
            merged[field.name] = before if kind in (before, pa.null()) else _wider(before, kind)
    return pa.schema(list(merged.items())) if merged else None


def _line_schemas(lines: list[bytes]) -> Iterator[pa.Schema]:
    lines = [line for line in lines if line.strip()]
    try:
        yield pyarrow.json.read_json(io.BytesIO(b"\n".join(lines))).schema
        return
    except pa.ArrowInvalid:
        pass
    for line in lines[:1000]:
        try:
            yield pyarrow.json.read_json(io.BytesIO(line)).schema
        except pa.ArrowInvalid:
            continue


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def _csv_schema(head: bytes, delimiter: str) -> pa.Schema:
    parse = pyarrow.csv.ParseOptions(
        delimiter=delimiter,
        quote_char=False if delimiter == "\t" else '"',
        newlines_in_values=delimiter != "\t",
        invalid_row_handler=lambda row: "skip",
    )
    cut = head.rfind(b"\n") + 1 or len(head)
    schema = pyarrow.csv.read_csv(io.BytesIO(head[:cut]), parse_options=parse).schema
    return schema
