"""Remove what no reader needs: files of no kept snapshot, hashes of ids that no check would read, old snapshots.

A file younger than the grace period stays, since a run that has not published its snapshot yet owns files that no
snapshot names.
"""

from __future__ import annotations

from collections.abc import Iterator

from operators.storage import FileInfo, Location, delete, list_folder
from operators.store.id_check import Role, cover
from operators.store.id_hashes import read_segments
from operators.store.snapshots import read_snapshot, snapshot_numbers


def orphans(dataset: Location, keep_snapshots: int, older_than: float) -> Iterator[FileInfo]:
    """Files of `data/`, `rejected/` and `ids/` that no kept snapshot needs, last modified before `older_than`.

    `older_than` is in seconds since the epoch. Files of unknown age stay.
    """
    kept: set[str] = set()
    units: dict[str, Role] = {}
    for number in snapshot_numbers(dataset)[-keep_snapshots:]:
        records = read_snapshot(dataset, number).records
        kept |= {f"{record.key}.parquet" for record in records}
        units |= dict.fromkeys((record.fragment.unit.digest for record in records), "stored")
    segments = read_segments(dataset)
    uses, _ = cover((segment for _, segment in segments if segment is not None), units)
    needed = {use.segment.key for use in uses}
    for folder in ("data", "rejected"):
        for info in list_folder(dataset / folder):
            if _name(info) not in kept and _is_older(info, older_than):
                yield info
    for info, segment in segments:
        if (segment is None or segment.key not in needed) and _is_older(info, older_than):
            yield info


def vacuum(dataset: Location, keep_snapshots: int, older_than: float) -> tuple[int, int]:
    """Delete orphans and all but the newest snapshots; returns how many files and bytes went."""
    numbers = snapshot_numbers(dataset)
    # The snapshots go first: one that names files which are gone must not be found by a reader.
    for number in numbers[:-keep_snapshots]:
        delete(dataset / "snapshots" / f"{number:08d}.parquet")
    num_files = num_bytes = 0
    for info in list(orphans(dataset, keep_snapshots, older_than)):
        folder = info.url.rsplit("/", 2)[-2]
        delete(dataset / folder / _name(info))
        num_files, num_bytes = num_files + 1, num_bytes + info.size
    return num_files, num_bytes


def _is_older(info: FileInfo, moment: float) -> bool:
    return info.modified is not None and info.modified < moment


def _name(info: FileInfo) -> str:
    return info.url.rsplit("/", 1)[-1]
