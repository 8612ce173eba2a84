"""Read the files of evaluation sets: TSV without quoting, RFC-4180 CSV and JSON lines, plain or compressed.

An evaluation set is small beside a corpus and must be complete to mean anything, so a row that does not read stops the
job with its number; nothing is skipped.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from operators.corpus.formats import READ_FAULTS
from operators.corpus.formats.jsonl import line_blocks
from operators.corpus.formats.streams import decompressed
from operators.corpus.source import format_of
from operators.errors import InputError
from operators.evaluation.tasks import Task
from operators.storage import Location, exists, locate, open_input

EXTENSIONS = (".tsv", ".csv", ".jsonl")
_COMPRESSED = ("", ".gz", ".zst")


def read_columns(location: Location, names: Sequence[str]) -> tuple[list[Any], ...]:
    """Some columns of a file, whole; InputError for a missing column, a broken row or a file without rows."""
    columns: tuple[list[Any], ...] = tuple([] for _ in names)
    for number, row in rows(location):
        for name, column in zip(names, columns, strict=True):
            if row.get(name) is None:
                raise InputError(
                    f"{location} has no {name!r} in row {number}: set columns to some of {', '.join(map(repr, row))}"
                )
            column.append(row[name])
    if not columns or not columns[0]:
        raise InputError(f"{location} has no rows: give a file with at least one")
    return columns


def rows(location: Location) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a .tsv, .csv or .jsonl file with their numbers, from 1 (the header and blank lines not counted)."""
    described = format_of(location.name, "auto")
    if described is None or described[0] not in ("tsv", "csv", "jsonl"):
        raise InputError(f"give {', '.join(EXTENSIONS)} (.gz or .zst may follow): {location} is none of them")
    if not exists(location):
        raise InputError(f"check the task's path: there is no file {location}")
    kind, compression = described
    with open_input(location) as raw:
        stream = decompressed(raw, compression)
        try:
            yield from _json_rows(stream, location) if kind == "jsonl" else _text_rows(stream, kind == "tsv", location)
        except READ_FAULTS as error:
            raise InputError(f"{location} does not read to its end: {error}") from error


def part_file(folder: Location, name: str) -> Location | None:
    """The file of a folder that is called `name` with one of the endings, or None."""
    endings = [extension + compressed for extension in EXTENSIONS for compressed in _COMPRESSED]
    return next((folder / f"{name}{ending}" for ending in endings if exists(folder / f"{name}{ending}")), None)


def task_file(task: Task, part: str | None = None) -> Location:
    """A task's path, or where that is a folder its file called `part` (default: the split); InputError without one."""
    place = locate(task.path, task.storage_options)
    if task.is_file:
        return place
    found = part_file(place, part or task.split)
    if found is None:
        raise InputError(
            f"task {task.name}: give a {', '.join(EXTENSIONS)} file, or a folder with one called "
            f"{part or task.split}: {place} is neither"
        )
    return found


def _json_rows(stream: Any, location: Location) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    lines = (line for _, block in line_blocks(stream, 0, -1) for line in block.split(b"\n"))
    for line in lines:
        if not line.strip():
            continue
        number += 1
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InputError(f"mend row {number} of {location}: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"mend row {number} of {location}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def _text_rows(stream: Any, tab: bool, location: Location) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(sys.maxsize)
    with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if tab else csv.reader(text, strict=True)
        records = (record for record in reader if record)
        header = next(records, [])
        for number, record in enumerate(records, 1):
            if len(record) != len(header):
                raise InputError(f"row {number} of {location} has {len(record)} fields, its header has {len(header)}")
            yield number, dict(zip(header, record, strict=True))
