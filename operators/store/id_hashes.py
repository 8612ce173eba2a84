"""The hashes of document ids, kept beside the fragments so that no run reads the ids of a unit again.

OUT/ids/<key>.parquet is a *segment*: the 64-bit hashes of some units' ids, ascending, with the piece of a unit that
each comes from. Its row groups end where the hash space, cut into `BUCKETS` equal parts, has its edges, so that a part
of the hash space is read without the rest, in about 6 bytes an id. A segment is written once, whole, under a name that
follows from the units in it: runs at once write the same or other files, and a run that dies leaves none that lies.
A unit that no segment covers (outputs of earlier versions have none; a file may be lost) is hashed when it is needed.

A unit's ids follow from its digest, so a segment counts before its units are embedded too; that a hash stands here says
no more than that the id may be in the unit.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.errors import InputError
from operators.storage import FileInfo, Location, list_folder, open_input, write_whole

logger = logging.getLogger(__name__)

FORMAT = 1
BUCKETS = 4096
SEGMENT_IDS = 4 << 20  # a process that writes one takes 30 bytes an id; also where the ids of a large unit are cut
_MOST_PIECES = 1 << 15
_GROUP_IDS = 1 << 14  # a row group costs 150 bytes of footer
_RECORD_KEY = b"embedfleet.ids"
_SHIFT = np.uint64(64 - BUCKETS.bit_length() + 1)
_SCHEMA = pa.schema([pa.field("hash", pa.uint64(), False), pa.field("piece", pa.uint16(), False)])

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Up to SEGMENT_IDS ids of a unit; a unit is covered where pieces 0..last are there."""

    unit: str
    number: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """What the footer of a segment says; a row group has the hashes of `width` buckets."""

    key: str
    is_of_source: bool  # all ids that the unit's rows have; else those that were embedded
    num_ids: int
    pieces: tuple[Piece, ...]
    width: int
    groups: tuple[int, ...]  # of all row groups that there could be, those that hold hashes

    def row_groups(self, first: int, end: int) -> range:
        """The row groups that hold hashes of buckets [first, end)."""
        bounds = [first // self.width, -(-end // self.width)]
        low, high = np.searchsorted(np.array(self.groups, np.int64), bounds)
        return range(int(low), int(high))


def segment_file(dataset: Location, key: str) -> Location:
    """Where a segment lies."""
    return dataset / "ids" / f"{key}.parquet"


def buckets_of(hashes: Hashes) -> NDArray[np.int64]:
    """The part of the hash space that each hash is in."""
    return (hashes >> _SHIFT).astype(np.int64)


def write_segments(
    dataset: Location,
    units: Iterable[tuple[str, Iterable[Hashes]]],
    is_of_source: bool,
    segment_ids: int = SEGMENT_IDS,
) -> Iterator[Segment]:
    """Write the hashes of units (digest, arrays in any order); yields each segment when it is on storage."""
    pieces: list[Piece] = []
    held: list[Hashes] = []
    num_ids = 0
    for unit, arrays in units:
        for piece, hashes in _cut(unit, arrays, segment_ids):
            pieces.append(piece)
            held.append(hashes)
            num_ids += len(hashes)
            if num_ids >= segment_ids or len(pieces) == _MOST_PIECES:
                yield _write(dataset, pieces, held, is_of_source)
                pieces, held, num_ids = [], [], 0
    if pieces:
        yield _write(dataset, pieces, held, is_of_source)


def _cut(unit: str, arrays: Iterable[Hashes], most: int) -> Iterator[tuple[Piece, Hashes]]:
    """A unit's hashes by piece: where the cuts are follows from the unit alone."""
    waiting: list[Hashes] = []
    num_waiting = number = 0
    for hashes in arrays:
        while num_waiting + len(hashes) > most:
            room = most - num_waiting
            yield Piece(unit, number, False), np.concatenate([*waiting, hashes[:room]])
            hashes, waiting, num_waiting, number = hashes[room:], [], 0, number + 1
        waiting.append(hashes)
        num_waiting += len(hashes)
    yield Piece(unit, number, True), np.concatenate([np.empty(0, np.uint64), *waiting])


def _write(dataset: Location, pieces: list[Piece], held: list[Hashes], is_of_source: bool) -> Segment:
    hashes = np.concatenate(held)
    numbers = np.repeat(np.arange(len(held), dtype=np.uint16), [len(array) for array in held])
    held.clear()
    order = np.argsort(hashes)
    table = pa.table([pa.array(hashes[order]), pa.array(numbers[order])], schema=_SCHEMA)
    width = 1
    while width < BUCKETS and len(hashes) * width < _GROUP_IDS * BUCKETS:
        width *= 2
    edges = np.arange(0, BUCKETS + 1, width, dtype=np.int64)
    starts = np.searchsorted(buckets_of(table["hash"].to_numpy()), edges)
    groups = np.flatnonzero(np.diff(starts))
    names = [(piece.unit, piece.number, piece.is_last) for piece in pieces]
    key = hashlib.blake2b(json.dumps([FORMAT, is_of_source, names]).encode(), digest_size=12).hexdigest()
    record = {
        "format": FORMAT,
        "is_of_source": is_of_source,
        "width": width,
        "groups": groups.tolist(),
        "pieces": names,
    }
    sink = pa.BufferOutputStream()
    schema = _SCHEMA.with_metadata({_RECORD_KEY: json.dumps(record).encode()})
    with pq.ParquetWriter(
        sink,
        schema,
        compression="none",
        use_dictionary=False,
        column_encoding={"hash": "DELTA_BINARY_PACKED", "piece": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
        write_statistics=False,
    ) as writer:
        for group in groups:
            writer.write_table(table.slice(starts[group], starts[group + 1] - starts[group]))
    write_whole(segment_file(dataset, key), sink.getvalue())
    return Segment(key, is_of_source, len(hashes), tuple(pieces), width, tuple(groups.tolist()))


def read_segments(dataset: Location) -> list[tuple[FileInfo, Segment | None]]:
    """The files of `ids/` with the segments that they are, None where one does not read."""
    files = list_folder(dataset / "ids")
    with ThreadPoolExecutor(32, thread_name_prefix="ids") as threads:
        return list(zip(files, threads.map(lambda info: _read(dataset, info), files), strict=True))


def _read(dataset: Location, info: FileInfo) -> Segment | None:
    key = info.name.removesuffix(".parquet")
    try:
        with open_input(segment_file(dataset, key)) as stream:
            metadata = pq.read_metadata(stream)
        record = json.loads((metadata.metadata or {})[_RECORD_KEY])
        if record["format"] != FORMAT:
            return None
        pieces = tuple(Piece(*piece) for piece in record["pieces"])
        return Segment(key, record["is_of_source"], metadata.num_rows, pieces, record["width"], tuple(record["groups"]))
    except (pa.ArrowInvalid, KeyError, FileNotFoundError) as error:  # damaged, not ours, or removed meanwhile
        logger.warning("%s does not read (%s); the ids in it are hashed anew", info.url, type(error).__name__)
        return None


@contextmanager
def open_segment(dataset: Location, segment: Segment) -> Iterator[SegmentReader]:
    """A segment of which parts are read; InputError where it is damaged."""
    location = segment_file(dataset, segment.key)
    try:
        with open_input(location) as stream:
            yield SegmentReader(stream, segment)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the storage; Arrow's own have none
            raise
        raise InputError(f"remove {location} and run again: it is damaged ({error}), and is made anew") from error


class SegmentReader:
    """An open segment."""

    def __init__(self, stream: BinaryIO, segment: Segment) -> None:
        self._file = pq.ParquetFile(stream, page_checksum_verification=True)
        self._segment = segment

    def hashes(self, groups: Sequence[int]) -> Hashes:
        """The hashes of some row groups, ascending."""
        if not len(groups):
            return np.empty(0, np.uint64)
        hashes: Hashes = self._file.read_row_groups(list(groups), columns=["hash"])["hash"].to_numpy()
        return hashes

    def pieces(self, groups: Sequence[int]) -> NDArray[np.uint16]:
        """The place in `Segment.pieces` of each of these hashes."""
        if not len(groups):
            return np.empty(0, np.uint16)
        pieces: NDArray[np.uint16] = self._file.read_row_groups(list(groups), columns=["piece"])["piece"].to_numpy()
        return pieces
