"""Write source files and read them back as rows, whole or in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, settings

from operators.corpus.formats import Pace
from operators.corpus.reading import read_rows
from operators.corpus.source import Source
from operators.work.fragment import Extent, SourceFile, Unit

NO_KEEP = pa.schema([])
FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def source_file(path: Path) -> SourceFile:
    """The file as the listing would name it."""
    return SourceFile(str(path), path.stat().st_size, "1")


def written(path: Path, content: bytes) -> Path:
    """Write a file; returns its path."""
    path.write_bytes(content)
    return path


def jsonl(records: list[Any], newline: str = "\n", is_ended: bool = True) -> bytes:
    """Records as JSON lines; a string is a line as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    return (newline.join(lines) + (newline if is_ended else "")).encode()


def rows_of(
    path: Path,
    keep: pa.Schema = NO_KEEP,
    extents: Iterable[Extent] | None = None,
    pace: Pace | None = None,
    **source: Any,
) -> list[dict[str, Any]]:
    """All rows of a file, good and rejected, in order."""
    unit = Unit.of(tuple(extents) if extents is not None else (Extent(source_file(path)),), "test")
    tables = list(read_rows(unit, Source(path=str(path), **source), keep, pace))
    return [row for table in tables for row in table.to_pylist()]


def good(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without a reason against them."""
    return [row for row in rows if row["reason"] is None]


def texts(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The texts of the good rows."""
    return [row["text"] for row in good(rows)]


def reasons(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Why rows were rejected."""
    return [row["reason"] for row in rows if row["reason"] is not None]
