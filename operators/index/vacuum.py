"""Remove what no kept snapshot of an index names: shards that were replaced, trained indexes, old snapshots.

A file younger than the grace period stays, since a run that has not published yet owns files that no snapshot names.
"""

from __future__ import annotations

from collections.abc import Iterator

from operators.index.snapshot import index_numbers, read_index
from operators.storage import FileInfo, Location, delete, list_folder


def index_orphans(index: Location, keep_snapshots: int, older_than: float) -> Iterator[Location]:
    """Files that none of the kept snapshots needs, last modified before `older_than` (seconds since the epoch)."""
    shards: set[str] = set()
    named: set[str] = set()
    for number in index_numbers(index)[-keep_snapshots:]:
        snapshot = read_index(index, number)
        shards |= {shard.key for shard in snapshot.shards}
        named |= {file.path.rsplit("/", 1)[-1] for shard in snapshot.shards for file in shard.patches}
        named |= {"index.json", "report.json", "report.html"}
        named |= {snapshot.trained.path} if snapshot.trained is not None else set()
        named |= {f"queries-{snapshot.queries}.parquet"}
    for folder, place in (("", index), ("shards", index / "shards"), ("recall", index / "recall")):
        for info in list_folder(place):
            key = info.name.split(".")[0]
            is_kept = info.name in named or (key in shards and ".dead-" not in info.name and ".moved-" not in info.name)
            if not is_kept and _is_older(info, older_than):
                yield (index / folder if folder else index) / info.name


def vacuum_index(index: Location, keep_snapshots: int, older_than: float) -> int:
    """Delete orphans and all but the newest snapshots; returns how many files went."""
    for number in index_numbers(index)[:-keep_snapshots]:
        # First: a snapshot that names files which are gone must not be found by a reader.
        delete(index / "snapshots" / f"{number:08d}.json")
    orphans = list(index_orphans(index, keep_snapshots, older_than))
    for location in orphans:
        delete(location)
    return len(orphans)


def _is_older(info: FileInfo, moment: float) -> bool:
    return info.modified is not None and info.modified < moment
