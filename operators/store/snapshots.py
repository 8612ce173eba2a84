"""Snapshots: immutable tables of the committed fragments, numbered from 1.

Snapshot n+1 is created only if it does not exist yet, so of two runs that finish at once one wins and the other looks
again. A snapshot is one row a fragment (about 200 bytes), so a billion documents are some ten thousand rows.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from operators.errors import InputError
from operators.storage import Location, StorageError, file_info, list_folder, read_bytes
from operators.storage.lease import using
from operators.storage.numbered import Numbered
from operators.store.fragments import FragmentRecord, read_record
from operators.work.fragment import Extent, Fragment, SourceFile, Unit

logger = logging.getLogger(__name__)

_EXTENT = pa.struct(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("first_row", pa.int64()),
        ("share", pa.float64()),
    ]
)
_NUMBERS = ("rows", "chunks", "rejected", "tokens", "padding_tokens", "lost_tokens", "truncated", "bytes")
_LOSSES = ("unreadable_files", "lost_bytes")  # not in the first snapshots, which read as without any
SNAPSHOT_SCHEMA = pa.schema(
    [("key", pa.string()), ("path", pa.string())]
    + [(name, pa.int64()) for name in (*_NUMBERS, *_LOSSES)]
    + [
        ("sources", pa.list_(_EXTENT)),
        ("ids_digest", pa.string()),
        ("unit", pa.string()),
        ("part", pa.int32()),
        ("last", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A numbered set of fragments, in the order of the source; number 0 is the empty dataset before the first run."""

    number: int
    records: tuple[FragmentRecord, ...]

    @property
    def keys(self) -> frozenset[str]:
        """The keys of its fragments."""
        return frozenset(record.key for record in self.records)


def snapshot_files(dataset: Location) -> Numbered:
    """The files of the snapshots."""
    return Numbered(dataset / "snapshots", ".parquet")


def snapshot_numbers(dataset: Location) -> list[int]:
    """The numbers of the snapshots that exist, ascending."""
    return snapshot_files(dataset).look().numbers


def latest_snapshot(dataset: Location) -> Snapshot:
    """The newest snapshot; the empty one where there is none yet."""
    numbers = snapshot_numbers(dataset)
    return read_snapshot(dataset, numbers[-1]) if numbers else Snapshot(0, ())


def read_snapshot(dataset: Location, number: int) -> Snapshot:
    """One snapshot by its number; raises InputError where the file is damaged."""
    location = snapshot_files(dataset).file(number)
    try:
        table = pq.read_table(pa.BufferReader(_content(location)))
    except pa.ArrowInvalid as error:
        raise InputError(f"restore {location.url} from a backup or remove it: it does not read ({error})") from error
    return Snapshot(number, tuple(_from_row(row) for row in table.to_pylist()))


def read_keys(dataset: Location, number: int) -> tuple[frozenset[str], frozenset[str]]:
    """The keys of a snapshot's fragments and the digests of their units, without the rest of it."""
    payload = pa.BufferReader(_content(snapshot_files(dataset).file(number)))
    table = pq.read_table(payload, columns=["key", "unit"])
    return frozenset(table["key"].to_pylist()), frozenset(table["unit"].unique().to_pylist())


def _content(location: Location) -> bytes:
    payload = read_bytes(location)
    if not payload:
        raise InputError(f"choose another snapshot: {location.name} was vacuumed")
    return payload


class FilesGone(StorageError):
    """A file of a fragment that counted as written is gone, or not the one that was written."""


def publish(dataset: Location, records: Sequence[FragmentRecord]) -> Snapshot:
    """Make `records` the newest snapshot; where a concurrent run published the same fragments, its snapshot is ours.

    Raises FilesGone where not all files are there any more, and publishes nothing then.
    """
    files = snapshot_files(dataset)
    while True:
        states = files.look()  # before anything else: what a vacuum takes away, it fences off from this number on
        latest = read_snapshot(dataset, states.numbers[-1]) if states.present else Snapshot(0, ())
        snapshot = Snapshot(states.last + 1, tuple(records))
        if latest.number and latest.keys == snapshot.keys:
            logger.info("snapshot %d already holds exactly these fragments", latest.number)
            return latest
        with using(dataset, "embed"):
            check_files(dataset, records)
            if files.create(snapshot.number, _to_parquet(records)):
                return snapshot
        logger.info("snapshot %d was published by another run meanwhile; looking again", snapshot.number)


def check_files(dataset: Location, records: Sequence[FragmentRecord]) -> None:
    """Raise FilesGone where a file of these fragments is not there or not of its size."""
    sizes = {info.name: info.size for info in list_folder(dataset / "data")}
    has_all = rejected_rows_there(dataset)
    for record in records:
        name = f"{record.key}.parquet"
        # A listing may lag behind: what it says is missing is asked for by name.
        if sizes.get(name) != record.bytes and _size(dataset / "data" / name) != record.bytes:
            raise FilesGone(errno.ESTALE, f"run embed again: data/{name} of {dataset} is gone or was replaced")
        if not has_all(record):
            raise FilesGone(errno.ESTALE, f"run embed again: rejected/{name} of {dataset} is gone")


def rejected_rows_there(dataset: Location) -> Callable[[FragmentRecord], bool]:
    """Whether the rejected rows of a fragment, if it has any, are on storage; one listing answers for most."""
    names = {info.name for info in list_folder(dataset / "rejected")}

    def is_there(record: FragmentRecord) -> bool:
        name = f"{record.key}.parquet"
        return not record.rejected or name in names or file_info(dataset / "rejected" / name) is not None

    return is_there


def _size(location: Location) -> int | None:
    info = file_info(location)
    return None if info is None else info.size


def written_fragments(dataset: Location, units: Iterable[str]) -> dict[str, FragmentRecord]:
    """Records by key of the data files on storage that belong to these units, whether in a snapshot or not.

    A file that does not read counts as not written, and the run then replaces it.
    """
    wanted = frozenset(units)
    found = [
        info
        for info in list_folder(dataset / "data")
        if info.url.endswith(".parquet") and unit_of_file(info.url) in wanted
    ]
    with ThreadPoolExecutor(32, thread_name_prefix="records") as threads:
        records = threads.map(lambda info: readable_record(dataset / "data" / info.url.rsplit("/", 1)[-1]), found)
        return {record.key: record for record in records if record is not None}


def readable_record(location: Location) -> FragmentRecord | None:
    """The record of a data file; None for one that is damaged or not there, whose fragment is then made anew."""
    try:
        return read_record(location)
    except (pa.ArrowInvalid, KeyError, FileNotFoundError) as error:  # damaged, not ours, or vacuumed meanwhile
        logger.warning("%s does not read (%s); its fragment is made anew", location.url, type(error).__name__)
        return None


def whole_units(records: Iterable[FragmentRecord]) -> dict[str, tuple[FragmentRecord, ...]]:
    """Units of which every part up to the last is there, by digest, with their records in order.

    Parts that leave out other rows of their unit are parts of another whole.
    """
    parts: dict[tuple[str, str], dict[int, FragmentRecord]] = {}
    for record in records:
        unit = record.fragment.unit
        parts.setdefault((unit.digest, unit.left_out), {})[record.fragment.part] = record
    whole = {}
    for (digest, _), by_part in parts.items():
        ordered = tuple(by_part[part] for part in sorted(by_part))
        if ordered[-1].fragment.last and len(ordered) == ordered[-1].fragment.part + 1:
            whole[digest] = ordered
    return whole


def whole_files(records: Iterable[FragmentRecord], reading: str) -> dict[SourceFile, tuple[Unit, ...]]:
    """The files that were split and whose units are all whole, so that they need not be opened to be split again.

    Units that were read in another way than `reading` (other columns, other sizes) do not count.
    """
    by_file: dict[SourceFile, list[Unit]] = {}
    for fragments in whole_units(records).values():
        unit = dataclasses.replace(fragments[0].fragment.unit, left_out="")
        if len(unit.extents) == 1 and Unit.of(unit.extents, reading) == unit:
            by_file.setdefault(unit.extents[0].file, []).append(unit)
    covered = {}
    for file, units in by_file.items():
        units.sort(key=lambda unit: unit.extents[0].start)
        ends = [unit.extents[0].end for unit in units]
        starts = [unit.extents[0].start for unit in units]
        if starts == [0, *ends[:-1]] and ends[-1] == -1:
            covered[file] = tuple(units)
    return covered


def unit_of_file(url: str) -> str:
    """The digest of the unit that a data file has a fragment of."""
    return url.rsplit("/", 1)[-1].rsplit("-", 1)[0]


def _to_parquet(records: Sequence[FragmentRecord]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([_to_row(record) for record in records], schema=SNAPSHOT_SCHEMA)
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _to_row(record: FragmentRecord) -> dict[str, object]:
    extents = []
    for extent in record.extents:
        flat = dataclasses.asdict(extent)
        extents.append({**flat.pop("file"), **flat})
    return {
        "key": record.key,
        "path": f"data/{record.key}.parquet",
        **{name: getattr(record, name) for name in (*_NUMBERS, *_LOSSES)},
        "sources": extents,
        "ids_digest": record.ids_digest,
        "unit": record.fragment.unit.digest,
        "part": record.fragment.part,
        "last": record.fragment.last,
    }


def _from_row(row: dict[str, Any]) -> FragmentRecord:
    sources: list[dict[str, Any]] = row["sources"]
    extents = tuple(Extent(SourceFile(s.pop("path"), s.pop("size"), s.pop("version")), **s) for s in sources)
    left_out = row["key"][len(f"{row['unit']}-{row['part']:05d}") :]  # "" or a name that begins with an x
    fragment = Fragment(Unit(row["unit"], extents, left_out), row["part"], row["last"])
    numbers = {name: row[name] for name in _NUMBERS} | {name: row.get(name, 0) for name in _LOSSES}
    return FragmentRecord(fragment=fragment, ids_digest=row["ids_digest"], **numbers)
