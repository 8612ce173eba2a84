"""Remove what no reader needs: files of no kept snapshot, hashes of ids that no check would read, old snapshots.

What is younger than the grace period stays, files (a run that has not published yet owns some that no snapshot names)
and snapshots that were replaced only then. A run at work may use any file, so where one is alive nothing goes; readers
keep the snapshots that they name. Before anything goes, the next snapshot's number is fenced off: a run that was held
up until it counts as dead, and that checked its files before, cannot publish without looking again.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from operators.storage import FileInfo, Location, delete_all, list_folder
from operators.storage.lease import Holder, take
from operators.storage.numbered import Numbered, States
from operators.store.id_check import Role, cover
from operators.store.id_hashes import read_segments
from operators.store.snapshots import read_keys, snapshot_files

# Names that this project gives; all others are somebody else's.
_FRAGMENT = re.compile(r"[0-9a-f]{24}-\d{5,}(x[0-9a-f]{12})?\.parquet")
_SEGMENT = re.compile(r"[0-9a-f]{24}\.parquet")
_PARTIAL = re.compile(r"\.writing-[0-9a-f]{32}")  # of a process that was killed while it wrote


@dataclass(frozen=True, slots=True)
class Removed:
    """What a vacuum did."""

    files: int
    bytes: int
    snapshots: int = 0
    users: tuple[Holder, ...] = ()  # at work, so that all or some of what would have gone is still there


def orphans(dataset: Location, keep: Collection[int], older_than: float) -> Iterator[tuple[Location, FileInfo]]:
    """Files of `data/`, `rejected/` and `ids/` that none of these snapshots needs, last modified before `older_than`.

    `older_than` is in seconds since the epoch, by the storage's clock. Files of unknown age, and such as are not named
    as this project names them, stay. Data files come first: one says that its fragment is done, so it goes before its
    rejected rows.
    """
    kept: set[str] = set()
    units: dict[str, Role] = {}
    for number in keep:
        keys, digests = read_keys(dataset, number)
        kept |= {f"{key}.parquet" for key in keys}
        units |= dict.fromkeys(digests, "stored")
    for name in ("data", "rejected"):
        folder = dataset / name
        for info in list_folder(folder, hidden=True):
            is_ours = _FRAGMENT.fullmatch(info.name) and info.name not in kept
            if (is_ours or _PARTIAL.fullmatch(info.name)) and is_older(info, older_than):
                yield folder / info.name, info
            else:
                kept.add(info.name)  # data that stays keeps its rejected rows, which were written a moment earlier
    segments = read_segments(dataset)
    uses, _ = cover((segment for _, segment in segments if segment is not None), units)
    needed = {use.segment.key for use in uses}
    for info, segment in segments:
        is_needed = segment is not None and segment.key in needed
        if _SEGMENT.fullmatch(info.name) and not is_needed and is_older(info, older_than):
            yield dataset / "ids" / info.name, info


def vacuum(dataset: Location, keep_snapshots: int, grace_seconds: float) -> Removed:
    """`remove_unused` of an embeddings dataset."""
    return remove_unused(
        dataset, snapshot_files(dataset), keep_snapshots, grace_seconds, functools.partial(orphans, dataset)
    )


def remove_unused(
    folder: Location,
    snapshots: Numbered,
    keep_snapshots: int,
    grace_seconds: float,
    orphans_of: Callable[[Collection[int], float], Iterable[tuple[Location, FileInfo]]],
) -> Removed:
    """Delete all but the newest snapshots that were replaced before the grace period, and what no other one needs.

    `orphans_of` is told the numbers that stay and the moment before which files are old; they go folder by folder, in
    its order. Raises LeaseTaken where another vacuum is at work, LeaseLost where this one was held up for too long.
    """
    with take(folder, "vacuum", "vacuum") as lease:
        users = tuple(lease.users())
        moment = (lease.now() or 0.0) - grace_seconds
        if any(user.snapshots is None for user in users):
            return Removed(0, 0, users=users)
        while True:
            states = snapshots.look()
            retired = _retiring(states, keep_snapshots, moment, users)
            found = list(orphans_of([n for n in states.numbers if n not in retired], moment))
            if not found and not retired:
                return Removed(0, 0, users=users)
            if snapshots.fence(states.last + 1):
                break
        # The snapshots go first: one that names files which are gone must not be found by a reader.
        for number in retired:
            lease.check()
            snapshots.retire(number)
        for _, of_folder in itertools.groupby(found, key=lambda one: one[0].url.rpartition("/")[0]):
            delete_all([place for place, _ in of_folder], lease.check)
        return Removed(len(found), sum(info.size for _, info in found), len(retired), users)


def _retiring(states: States, keep_snapshots: int, moment: float, users: Collection[Holder]) -> list[int]:
    """Numbers of the snapshots that may go: not of the newest, replaced before `moment`, read by nobody."""
    read = {number for user in users for number in user.snapshots or ()}
    newest = set(states.numbers[-keep_snapshots:])
    return [number for number in states.superseded_before(moment) if number not in newest and number not in read]


def is_older(info: FileInfo, moment: float) -> bool:
    """Whether a file is known to have been last modified before a moment."""
    return info.modified is not None and info.modified < moment
