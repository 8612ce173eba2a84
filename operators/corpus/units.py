"""Cut the listing into units of reading, streaming: what is kept per file is its units, never its rows.

- A Parquet file above `OPEN_ABOVE_BYTES` is split by row group (its footer is read, many files at a time in threads).
- An uncompressed JSONL file above `Source.max_bytes` is split by byte range. Where ids are `path#row` its lines are
  counted first, since a row number needs the lines before it; an id column saves that pass over the file, and rows
  are then numbered by the byte at which their line begins.
- CSV, compressed files and smaller files are one unit each.
- Files below `pack_below_bytes` share units (operators/corpus/packs.py).

A file whose units are all committed is never opened again: its units are rebuilt from the snapshot.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq

from operators.corpus.formats import READ_FAULTS
from operators.corpus.formats.jsonl import line_blocks
from operators.corpus.packs import Packer
from operators.corpus.source import Source, format_of
from operators.storage import locate, open_input
from operators.work.fragment import Extent, SourceFile, Unit

OPEN_ABOVE_BYTES = 4 << 20
PACK_BELOW_BYTES = 64 << 10
PACK_TARGET_BYTES = 1 << 20
PACK_FROM_FILES = 256
# Image files are larger and only ever one document each; decoded they travel by Source.max_rows
PACK_IMAGES_BELOW_BYTES = 32 << 20
PACK_IMAGES_TARGET_BYTES = 32 << 20
_OPEN_THREADS = 32


def choose_pack_below(files: Iterator[SourceFile], source: Source) -> tuple[int, Iterator[SourceFile]]:
    """The packing threshold in bytes for a source that was never embedded before, and the listing unharmed."""
    if source.pack_below_bytes is not None:
        return source.pack_below_bytes, files
    first = list(itertools.islice(files, PACK_FROM_FILES))
    # A file of text or an image is one document, too little for a fragment of its own however few there are.
    kinds = {_kind(file, source) for file in first}
    if kinds == {"image"}:
        return PACK_IMAGES_BELOW_BYTES, itertools.chain(first, files)
    are_texts = kinds == {"text"}
    is_packed = are_texts or len(first) == PACK_FROM_FILES
    return (PACK_BELOW_BYTES if is_packed else 0), itertools.chain(first, files)


def plan_units(
    files: Iterable[SourceFile],
    source: Source,
    keep: tuple[str, ...],
    pack_below_bytes: int,
    known_units: Mapping[SourceFile, tuple[Unit, ...]],
    even_packs: bool = False,
) -> Iterator[Unit]:
    """The units of the listed files, in order; `known_units`: those of files that the latest snapshot holds whole.

    `even_packs`: small files share units of about `Source.max_bytes` and never more; else of about 1 MiB and up to
    four times that, as in trainings and in outputs whose identity has no size of fragments.
    """
    reading = source.reading(keep)
    packer = Packer(lambda file: _pack_target_bytes(file, source, even_packs), even_packs)
    to_open: list[SourceFile] = []
    with ThreadPoolExecutor(_OPEN_THREADS, thread_name_prefix="footers") as threads:
        for file in files:
            if file.size < pack_below_bytes:
                yield from (_packed(pack, reading) for pack in packer.add(file))
            elif file in known_units:
                yield from known_units[file]
            elif _is_opened_to_split(file, source):
                to_open.append(file)
                if len(to_open) >= _OPEN_THREADS:
                    yield from _split_all(threads, to_open, source, reading)
                    to_open = []
            else:
                yield Unit.of((Extent(file),), reading)
        yield from _split_all(threads, to_open, source, reading)
        yield from (_packed(pack, reading) for pack in packer.rest())


def _kind(file: SourceFile, source: Source) -> str:
    described = format_of(file.path, source.format)
    return described[0] if described else ""


def _pack_target_bytes(file: SourceFile, source: Source, even_packs: bool) -> int:
    target = PACK_IMAGES_TARGET_BYTES if _kind(file, source) == "image" else PACK_TARGET_BYTES
    return min(target, source.max_bytes) if even_packs else target


def _packed(files: list[SourceFile], reading: str) -> Unit:
    return Unit.of(tuple(Extent(file) for file in files), reading)


def _is_opened_to_split(file: SourceFile, source: Source) -> bool:
    described = format_of(file.path, source.format)
    if described == ("parquet", None):
        return file.size > OPEN_ABOVE_BYTES
    return described == ("jsonl", None) and file.size > source.max_bytes


def _split_all(threads: ThreadPoolExecutor, files: list[SourceFile], source: Source, reading: str) -> Iterator[Unit]:
    for extents in threads.map(lambda file: _split(file, source), files):
        yield from (Unit.of((extent,), reading) for extent in extents)


def _split(file: SourceFile, source: Source) -> tuple[Extent, ...]:
    described = format_of(file.path, source.format)
    assert described is not None
    if described[0] == "parquet":
        return _split_parquet(file, source)
    return _split_jsonl(file, source)


def _split_parquet(file: SourceFile, source: Source) -> tuple[Extent, ...]:
    try:
        with open_input(locate(file.path, source.storage_options)) as stream:
            metadata = pq.ParquetFile(stream).metadata
            rows_of = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    except READ_FAULTS:
        return (Extent(file),)  # reading it will say what is wrong, as a rejected row
    extents, start, rows, first_row = [], 0, 0, 0
    for group, group_rows in enumerate(rows_of):
        rows += group_rows
        if rows >= source.max_rows and group + 1 < len(rows_of):
            extents.append(Extent(file, start, group + 1, first_row, rows / max(sum(rows_of), 1)))
            start, first_row, rows = group + 1, first_row + rows, 0
    return (*extents, Extent(file, start, -1, first_row, rows / max(sum(rows_of), 1)))


def _split_jsonl(file: SourceFile, source: Source) -> tuple[Extent, ...]:
    bounds = list(range(0, file.size, source.max_bytes))
    ends = [*bounds[1:], -1]
    if source.id is not None:
        return tuple(
            Extent(file, start, end, -1, _share(file, start, end)) for start, end in zip(bounds, ends, strict=True)
        )
    extents, first_row = [], 0
    for start, end in zip(bounds, ends, strict=True):
        extents.append(Extent(file, start, end, first_row, _share(file, start, end)))
        if end >= 0:
            first_row += _count_lines(file, source, start, end)
    return tuple(extents)


def _share(file: SourceFile, start: int, end: int) -> float:
    return ((file.size if end < 0 else end) - start) / file.size


def _count_lines(file: SourceFile, source: Source, start: int, end: int) -> int:
    with open_input(locate(file.path, source.storage_options)) as stream:
        return sum(block.count(b"\n") for _, block in line_blocks(stream, start, end))
