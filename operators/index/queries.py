"""Queries of a search: texts to embed, or ready vectors.

queries: {path: questions.jsonl, id: _id, text: text}
queries: {path: "vectors/*.parquet", id: doc_id, vector: embedding}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from operators.corpus.listing import list_source
from operators.corpus.source import Source, format_of
from operators.errors import InputError
from operators.index.vectors import VECTORS_AT_ONCE, Vectors, VectorSpace
from operators.storage import locate, open_input

TEXTS_AT_ONCE = 8192


class Queries(BaseModel):
    """Where queries come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | tuple[str, ...] = Field(description="file, folder, glob or a list of them; local, s3:// or any URL")
    format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "text"] = Field(
        default="auto", description="auto goes by file names"
    )
    id: str | None = Field(default=None, description="column with the query's id; null = path#row")
    text: str = Field(default="text", description="column with the text, or a template; not read where vector is given")
    vector: str | None = Field(
        default=None, description="column with ready vectors (Parquet or JSONL); null = the texts are embedded"
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="fsspec options (endpoint_url, ...), never stored"
    )

    @property
    def source(self) -> Source:
        """The same as a source of texts; an id that comes twice is a query that comes twice."""
        return Source(
            path=self.path,
            format=self.format,
            id=self.id,
            text=self.text,
            duplicates="keep_all",
            storage_options=self.storage_options,
        )


@dataclass(frozen=True, slots=True)
class QueryBatch:
    """Queries with their vectors."""

    ids: pa.Array  # string
    vectors_QD: Vectors


def read_query_vectors(queries: Queries, space: VectorSpace, rows: int = VECTORS_AT_ONCE) -> Iterator[QueryBatch]:
    """Ready vectors of all files, `rows` at a time; InputError names a file whose vectors cannot be used."""
    assert queries.vector is not None, "these queries are texts"
    for file in list_source(queries.source):
        kind = format_of(file.path, queries.format)
        if kind is None or kind[0] not in ("parquet", "jsonl") or kind[1] is not None:
            raise InputError(f"give query vectors as Parquet or plain JSONL: {file.path} is neither")
        tables = _parquet(queries, file.path, rows) if kind[0] == "parquet" else _jsonl(queries, file.path)
        row = 0
        for table in tables:
            ids = _ids(table, queries, file.path, row)
            vectors_QD = space.queries_of_column(table[queries.vector], file.path, _scale_of(table.schema, space))
            yield QueryBatch(ids, vectors_QD)
            row += table.num_rows


def _parquet(queries: Queries, path: str, rows: int) -> Iterator[pa.Table]:
    with open_input(locate(path, queries.storage_options)) as stream:
        try:
            file = pq.ParquetFile(stream)
        except pa.ArrowInvalid as error:
            raise InputError(f"check queries.path: {path} is no Parquet file ({error})") from None
        columns = [name for name in (queries.id, queries.vector) if name is not None]
        for name in columns:
            if name not in file.schema_arrow.names:
                raise InputError(f"{path} has no column {name!r}; it has {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(rows, columns=columns):
            yield pa.Table.from_batches([batch]).replace_schema_metadata(file.schema_arrow.metadata)


def _scale_of(schema: pa.Schema, space: VectorSpace) -> float | None:
    """The scale of int8 codes that are another dataset's, which its data files tell."""
    stored = json.loads((schema.metadata or {}).get(b"embedfleet.dataset", b"{}"))
    return stored.get("scale") if space.dtype == "int8" else None


def _jsonl(queries: Queries, path: str) -> Iterator[pa.Table]:
    with open_input(locate(path, queries.storage_options)) as stream:
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            row = _parsed(line, queries, path, number)
            # Codes and vectors are told apart by their numbers' type, so that one table has one of them.
            if rows and (len(rows) == TEXTS_AT_ONCE or _kind(rows[-1], queries) != _kind(row, queries)):
                yield pa.Table.from_pylist(rows)
                rows = []
            rows.append(row)
        if rows:
            yield pa.Table.from_pylist(rows)


def _parsed(line: bytes, queries: Queries, path: str, number: int) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
        names = [name for name in (queries.id, queries.vector) if name is not None]
        picked = {name: row[name] for name in names}
        if queries.vector is not None:
            values = np.asarray(picked[queries.vector])
            picked[queries.vector] = values if values.dtype == np.int64 else values.astype(np.float32)
        return picked
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"mend line {number} of {path}: {type(error).__name__}: {error} (wanted: {queries.vector})"
        ) from None


def _kind(row: dict[str, Any], queries: Queries) -> str:
    assert queries.vector is not None, "these queries are vectors"
    return str(row[queries.vector].dtype)


def _ids(table: pa.Table, queries: Queries, path: str, row: int) -> pa.Array:
    if queries.id is None:
        return pa.array([f"{path}#{row + i}" for i in range(table.num_rows)], pa.string())
    ids = table[queries.id].combine_chunks()
    if ids.null_count:
        raise InputError(f"give every query an id, or set queries.id: null: {path} has {ids.null_count} without one")
    return ids.cast(pa.string()) if isinstance(ids, pa.Array) else pa.concat_arrays(ids.chunks).cast(pa.string())
