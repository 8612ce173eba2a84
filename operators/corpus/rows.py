"""Turn raw columns into rows: a document id and a text or an image each, or a reason why not.

Every input row stays in the table, in order, with a null `reason` where it is good, so that a fragment can be cut
anywhere and its rows still add up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.corpus.images import image_column
from operators.corpus.source import Source, fill_template, format_of, template_fields
from operators.work.fragment import REJECTED_SCHEMA
from operators.work.names import RAW_MESSAGE, RAW_REASON, RAW_ROW

FIXED_COLUMNS = ("doc_id", "source_path", "source_row", "text")


def make_rows(raw: pa.Table, path: str, source: Source, keep: pa.Schema) -> pa.Table:
    """Rows of one file from its raw columns.

    `raw` holds `RAW_ROW` (int64), optionally `RAW_REASON` and `RAW_MESSAGE` of rows already found bad by the reader,
    and the source's columns. Returns doc_id, source_path, source_row, text, reason, message, `image` where the source
    has images (`operators.corpus.images.IMAGE_TYPE`), and the kept columns.
    """
    num_rows = raw.num_rows
    reasons = Reasons(raw, RAW_REASON, RAW_MESSAGE)
    missing = [c for c in (*source.content_columns, *([source.id] if source.id else [])) if c not in raw.column_names]
    if missing:
        reasons.mark(np.ones(num_rows, bool), "missing_column", f"the file has no column {missing[0]!r}")
    doc_id = _document_ids(raw, path, source, reasons)
    text, image = _contents(raw, path, source, reasons)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "doc_id": doc_id,
        "source_path": pa.array([path] * num_rows, pa.string()),
        "source_row": raw[RAW_ROW].cast(pa.int64()),
        "text": text,
        "reason": reasons.reason_array(),
        "message": reasons.message_array(),
    }
    if image is not None:
        columns["image"] = image
    for kept in keep:
        columns[kept.name] = _kept(raw, kept)
    return pa.table(columns)


def reject_positions(rows: pa.Table, positions: NDArray[np.int64], reason: str, message: str) -> pa.Table:
    """Mark the rows at these positions as rejected, where they are not already."""
    reasons = Reasons(rows)
    mask = np.zeros(rows.num_rows, bool)
    mask[positions] = True
    reasons.mark(mask, reason, message)
    at = rows.schema.get_field_index
    rows = rows.set_column(at("reason"), "reason", reasons.reason_array())
    return rows.set_column(at("message"), "message", reasons.message_array())


def split_rejected(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The good rows without their reason columns, and the rejected ones in `REJECTED_SCHEMA`."""
    good_mask = pc.is_null(rows["reason"])
    good = rows.filter(good_mask).drop_columns(["reason", "message"])
    rejected = rows.filter(pc.invert(good_mask)).select(REJECTED_SCHEMA.names).cast(REJECTED_SCHEMA)
    return good, rejected


def ids_digest(rows: pa.Table) -> str:
    """Digest of which rows these are: path, row number and id of each, in order (nulls count as such)."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("source_path", "source_row", "doc_id"):
        column = rows[name].combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        digest.update(pc.is_null(column).to_numpy(zero_copy_only=False).tobytes())
        if pa.types.is_integer(column.type):
            digest.update(column.fill_null(-1).to_numpy().tobytes())
        else:
            filled = column.fill_null("")
            digest.update(pc.binary_length(filled).to_numpy().tobytes())
            digest.update("".join(filled.to_pylist()).encode())
    return digest.hexdigest()


class Reasons:
    """The first reason found for each row; later ones do not replace it."""

    def __init__(self, rows: pa.Table, reason: str = "reason", message: str = "message") -> None:
        names = rows.column_names
        self.reason: NDArray[np.object_] = (
            np.array(rows[reason].to_pylist(), object) if reason in names else np.full(rows.num_rows, None, object)
        )
        self.message: NDArray[np.object_] = (
            np.array(rows[message].to_pylist(), object) if message in names else np.full(rows.num_rows, None, object)
        )

    def mark(self, mask: NDArray[np.bool_], reason: str, message: str | Sequence[str]) -> None:
        if not mask.any():
            return
        fresh = mask & np.fromiter((reason is None for reason in self.reason), bool, len(self.reason))
        self.reason[fresh] = reason
        self.message[fresh] = message if isinstance(message, str) else np.array(message, object)[fresh]

    def reason_array(self) -> pa.Array:
        return pa.array(self.reason, pa.string())

    def message_array(self) -> pa.Array:
        return pa.array(self.message, pa.string())


def _document_ids(raw: pa.Table, path: str, source: Source, reasons: Reasons) -> pa.Array:
    if source.id is None and format_of(path, source.format) == ("image", None):
        return pa.array([path] * raw.num_rows, pa.string())
    if source.id is None:
        return pc.binary_join_element_wise(path, pc.cast(raw[RAW_ROW], pa.string()), "#").combine_chunks()
    if source.id not in raw.column_names:
        return pa.nulls(raw.num_rows, pa.string())
    column = one_chunk(raw[source.id])
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):
        ids = pa.nulls(len(column), pa.string())
    elif pa.types.is_integer(column.type) or is_string(column.type):
        ids, bad = valid_strings(column.cast(pa.string()) if pa.types.is_integer(column.type) else column)
        reasons.mark(bad, "invalid_utf8", f"the id in column {source.id!r} is not valid UTF-8")
    else:
        reasons.mark(
            np.ones(raw.num_rows, bool),
            "wrong_type",
            f"the id column {source.id!r} holds {column.type}; expected strings or integers",
        )
        return pa.nulls(raw.num_rows, pa.string())
    absent = pc.is_null(ids).to_numpy(zero_copy_only=False) | pc.equal(ids.fill_null(""), "").to_numpy(
        zero_copy_only=False
    )
    reasons.mark(absent, "missing_id", f"the id in column {source.id!r} is null or empty")
    return ids


def _contents(raw: pa.Table, path: str, source: Source, reasons: Reasons) -> tuple[pa.Array, pa.Array | None]:
    """Text and image of each row; with images, a row needs only one of the two."""
    if source.image is None:
        assert source.text is not None, "a source has texts or images"
        return row_texts(raw, source.text, reasons), None
    text = _texts(raw, source.text, reasons) if source.text is not None else pa.nulls(raw.num_rows, pa.string())
    no_text, blank = _null_and_blank(text)
    image, bad = image_column(raw, source.image, path)
    reasons.mark(bad, "wrong_type", f"the image column {source.image!r} holds neither bytes nor valid text")
    nothing = (no_text | blank) & pc.is_null(image).to_numpy(zero_copy_only=False)
    what = "an image" if source.text is None else "an image nor a text"
    reasons.mark(
        nothing, "null_image", f"the row has not {what}" if source.text is None else f"the row has neither {what}"
    )
    return pc.if_else(pa.array(blank), None, text), image


def row_texts(raw: pa.Table, text_of: str, reasons: Reasons) -> pa.Array:
    """The text of each row from a column or a template; rows without one get a reason, and are null or blank."""
    text = _texts(raw, text_of, reasons)
    null, blank = _null_and_blank(text)
    reasons.mark(null, "null_text", "the text is null or missing")
    reasons.mark(blank, "blank_text", "the text is empty or white space only")
    return text


def _null_and_blank(text: pa.Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    blank = pc.equal(pc.utf8_trim_whitespace(text), "").fill_null(False)
    return pc.is_null(text).to_numpy(zero_copy_only=False), blank.to_numpy(zero_copy_only=False)


def _texts(raw: pa.Table, text_of: str, reasons: Reasons) -> pa.Array:
    """Text per row; a template's null columns count as empty, and the text is null only where all of them are."""
    parts: dict[str, pa.Array] = {}
    for name in tuple(dict.fromkeys(template_fields(text_of))) or (text_of,):
        if name not in raw.column_names:
            return pa.nulls(raw.num_rows, pa.string())
        column = one_chunk(raw[name])
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_null(column.type):
            column = column.cast(pa.string())
        if not is_string(column.type):
            message = f"the text column {name!r} holds {column.type}; expected strings"
            reasons.mark(np.ones(raw.num_rows, bool), "wrong_type", message)
            return pa.nulls(raw.num_rows, pa.string())
        parts[name], bad = valid_strings(column)
        reasons.mark(bad, "invalid_utf8", f"the text in column {name!r} is not valid UTF-8")
    return _fill(parts, text_of) if template_fields(text_of) else parts[text_of]


def _fill(parts: dict[str, pa.Array], template: str) -> pa.Array:
    columns = {name: part.to_pylist() for name, part in parts.items()}
    filled: list[str | None] = []
    for values in zip(*columns.values(), strict=True):
        # A template's own words do not make a document: all columns null or blank means there is no text.
        if any(value is not None and value.strip() for value in values):
            filled.append(fill_template(template, {n: v or "" for n, v in zip(columns, values, strict=True)}))
        else:
            filled.append(None if all(value is None for value in values) else "")
    return pa.array(filled, pa.string())


def _kept(raw: pa.Table, kept: pa.Field) -> pa.Array | pa.ChunkedArray:
    if kept.name not in raw.column_names:
        return pa.nulls(raw.num_rows, kept.type)
    column = raw[kept.name]
    if column.type == kept.type:
        return column
    try:
        return column.cast(kept.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        # A kept column is beside the point of the row: a value of another type becomes null, the row stays.
        return pa.array([_cast_or_none(value, kept.type) for value in column], kept.type)


def _cast_or_none(value: pa.Scalar, to: pa.DataType) -> object:
    try:
        return value.cast(to).as_py()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array."""
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def is_string(kind: pa.DataType) -> bool:
    """Whether these are texts, as strings or as bytes."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def valid_strings(column: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """The column as string, null where it is not valid UTF-8, and the mask of those rows."""
    binary = column.cast(pa.binary())
    as_string = binary.view(pa.string())
    try:
        as_string.validate(full=True)
        return as_string, np.zeros(len(column), bool)
    except pa.ArrowInvalid:
        pass
    values, bad = [], np.zeros(len(column), bool)
    for position, value in enumerate(binary.to_pylist()):
        try:
            values.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            values.append(None)
            bad[position] = True
    return pa.array(values, pa.string()), bad
