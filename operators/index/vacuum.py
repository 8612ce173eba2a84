"""Remove what no kept snapshot of an index names: shards that were replaced, trained indexes, old snapshots.

What is younger than the grace period stays, as does what a run or a reader at work may use (operators.store.vacuum).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator

from operators.index.snapshot import index_files, read_index
from operators.storage import FileInfo, Location, list_folder
from operators.store.vacuum import Removed, is_older, remove_unused

# Names that this project gives; all others are somebody else's. Folder -> pattern; `key` is the shard's.
_KEY = r"(?P<key>[0-9a-f]{24}(-[0-9a-f]+)?)"
_PARTIAL = r"|\.writing-[0-9a-f]{32}"  # of a process that was killed while it wrote
_PATTERNS = {
    "": re.compile(r"trained(-\d+)?\.faiss" + _PARTIAL),
    "shards": re.compile(
        _KEY + r"\.(faiss|sparse\.arrow|ids\.parquet|(?P<patch>(dead|moved)-[0-9a-f]+\.parquet))" + _PARTIAL
    ),
    "recall": re.compile(_KEY + r"\.[0-9a-f]+\.parquet|queries-[0-9a-f]{12}\.parquet" + _PARTIAL),
    "scattered": re.compile(_KEY + r"\.(\d+\.arrows|json)" + _PARTIAL),
}


def index_orphans(index: Location, keep: Collection[int], older_than: float) -> Iterator[tuple[Location, FileInfo]]:
    """Files that none of these snapshots needs, last modified before `older_than` (seconds, the storage's clock).

    Where there is no snapshot yet, the trained index stays: a run that goes on needs it.
    """
    shards: set[str] = set()
    named: set[str] = set()
    for number in keep:
        snapshot = read_index(index, number)
        shards |= {shard.key for shard in snapshot.shards}
        named |= {file.path.rsplit("/", 1)[-1] for shard in snapshot.shards for file in shard.patches}
        named |= {snapshot.trained.path} if snapshot.trained is not None else set()
        named |= {f"queries-{snapshot.queries}.parquet"}
    for name, pattern in _PATTERNS.items():
        folder = index / name if name else index
        for info in list_folder(folder, hidden=True):
            match = pattern.fullmatch(info.name)
            if match is None or info.name in named or not is_older(info, older_than):
                continue
            parts = match.groupdict()
            is_of_shard = parts.get("key") in shards and not parts.get("patch")
            if not is_of_shard and (keep or not info.name.startswith(("trained", "queries"))):
                yield folder / info.name, info


def vacuum_index(index: Location, keep_snapshots: int, grace_seconds: float) -> Removed:
    """`remove_unused` of an index."""
    return remove_unused(
        index, index_files(index), keep_snapshots, grace_seconds, functools.partial(index_orphans, index)
    )
