"""Which ids come more than once, found on Ray by the hashes of all of them.

    holders without hashes on storage -> 64-bit hashes in ids/ -> suspects by part of the hash space -> their ids decide

Each hash is read once. No process holds more than the checked hashes of one part; the driver sees the rows that are
duplicates alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.corpus.duplicates import CANDIDATES, hash_ids, is_among, later_occurrences
from operators.storage import Location
from operators.store.id_check import Role, Use, cover, parts_of, suspects_in
from operators.store.id_hashes import Segment, read_segments, write_segments
from operators.work.fragment import Unit

if TYPE_CHECKING:
    import ray

_RETRIED: dict[str, Any] = {"max_retries": 4, "retry_exceptions": [OSError]}
# Bytes that one task reads of ids not hashed yet: small ones keep all CPUs busy, large ones make few, large segments.
_LEAST_TASK_BYTES, _TASK_BYTES, _TASKS_PER_CPU = 16 << 20, 4 << 30, 4
_IDS_PER_TASK = 4 << 20  # for less a task is not worth its start; the candidates among them take 60 bytes each


@dataclass(frozen=True, slots=True)
class Holder:
    """A unit that holds ids: in data files (`stored`, keys by part), or still to be read from the source."""

    digest: str
    stored: tuple[str, ...]
    unit: Unit | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Check:
    """What every task is told: which hashes are compared, and which holder each piece of a segment belongs to."""

    uses: Sequence[Use]
    ordinals: Sequence[NDArray[np.int64]]  # a use: places among the holders by piece, -1 for pieces that do not count
    groups: Sequence[int]  # the first holder of each group whose ids one task looks at


Reader = Callable[[Holder], Iterable[pa.Array]]


def find_later(
    dataset: Location, holders: Sequence[Holder], roles: Sequence[Role], read: Reader, named: int | None
) -> pa.Table:
    """The rows (`CANDIDATES`) whose id came before in the order of the holders, where one of the two is checked.

    Hashes that are not on storage are put there. At least the first `named` ids are told (None: all), others are null.
    """
    by_digest = {holder.digest: place for place, holder in enumerate(holders)}
    units = {holder.digest: role for holder, role in zip(holders, roles, strict=True)}
    segments = _segments(dataset)
    uses, missing = cover(segments, units)
    for is_of_source in (True, False):
        unread = [holders[by_digest[unit]] for unit in missing if (units[unit] == "pending") == is_of_source]
        segments += _hash_all(dataset, unread, read, is_of_source)
    uses, missing = cover(segments, units) if missing else (uses, missing)
    assert not missing, f"{len(missing)} units have no hashes although they were written"
    if not any(use.has_checked for use in uses):
        return CANDIDATES.empty_table()
    ordinals = [np.array([by_digest.get(p.unit, -1) for p in use.segment.pieces], np.int64) for use in uses]
    num_groups = max(1, min(len(holders), sum(use.segment.num_ids for use in uses) // _IDS_PER_TASK))
    groups = [len(holders) * i // num_groups for i in range(num_groups)]
    suspects, count = _suspects(dataset, Check(uses, ordinals, groups))
    return _settle(holders, groups, suspects, count, read, named)


def _segments(dataset: Location) -> list[Segment]:
    return [segment for _, segment in read_segments(dataset) if segment is not None]


def _hash_all(dataset: Location, holders: Sequence[Holder], read: Reader, is_of_source: bool) -> list[Segment]:
    """Put the hashes of these holders on storage."""
    import ray

    total = sum(holder.size_bytes for holder in holders)
    target = max(_LEAST_TASK_BYTES, min(total // (_TASKS_PER_CPU * _num_cpus()), _TASK_BYTES))
    task = ray.remote(num_cpus=1, **_RETRIED)(_hash)
    running, group, held = [], list[Holder](), 0
    for place, holder in enumerate(holders):
        group.append(holder)
        held += holder.size_bytes
        if held >= target or place + 1 == len(holders):
            running.append(task.remote(dataset, group, read, is_of_source))
            group, held = [], 0
    return list(itertools.chain.from_iterable(ray.get(running)))


def _hash(dataset: Location, holders: Sequence[Holder], read: Reader, is_of_source: bool) -> list[Segment]:
    units = ((holder.digest, (hash_ids(ids.drop_null()) for ids in read(holder))) for holder in holders)
    return list(write_segments(dataset, units, is_of_source))


def _suspects(dataset: Location, check: Check) -> tuple[list[list[ray.ObjectRef]], int]:
    """Tables (ordinal, hash) of what may be a duplicate, by group of holders; and how many rows they have together."""
    import ray

    num_ids, num_groups = sum(use.segment.num_ids for use in check.uses), len(check.groups)
    parts = parts_of(check.uses, min(_TASKS_PER_CPU * _num_cpus(), -(-num_ids // _IDS_PER_TASK)))
    task = ray.remote(num_cpus=1, num_returns=num_groups + 1, **_RETRIED)(_suspects_by_group)
    told = ray.put(check)
    found = [task.remote(dataset, told, part) for part in parts]
    counts_PG = np.array(ray.get([counts for counts, *_ in found]))
    tables = [[found[p][g + 1] for p in np.flatnonzero(counts_PG[:, g])] for g in range(num_groups)]
    return tables, int(counts_PG.sum())


def _suspects_by_group(dataset: Location, check: Check, part: range) -> tuple[Any, ...]:
    found = suspects_in(dataset, check.uses, part)
    ordinal = np.full(found.num_rows, -1, np.int64)
    segment, piece = found["segment"].to_numpy(), found["piece"].to_numpy()
    for number in np.unique(segment):
        ordinal[segment == number] = check.ordinals[number][piece[segment == number]]
    group = np.searchsorted(np.array(check.groups), ordinal, "right") - 1
    table = pa.table({"ordinal": pa.array(ordinal), "hash": found["hash"]})
    counts = np.bincount(group, minlength=len(check.groups))
    return (counts, *(table.filter(pa.array(group == g)) if counts[g] else None for g in range(len(check.groups))))


def _settle(
    holders: Sequence[Holder],
    groups: Sequence[int],
    suspects: Sequence[Sequence[ray.ObjectRef]],
    count: int,
    read: Reader,
    named: int | None,
) -> pa.Table:
    """Look at the ids themselves."""
    import ray

    if not count:
        return CANDIDATES.empty_table()
    num_parts = -(-count // _IDS_PER_TASK)
    look = ray.remote(num_cpus=1, num_returns=num_parts, **_RETRIED)(_candidates)
    decide = ray.remote(num_cpus=1, **_RETRIED)(_later)
    found = []
    for first, end, tables in zip(groups, [*groups[1:], len(holders)], suspects, strict=True):
        if tables:
            returned = look.remote(holders[first:end], first, read, num_parts, *tables)
            found.append([returned] if num_parts == 1 else returned)
    later = [decide.remote(named, *(of_group[part] for of_group in found)) for part in range(num_parts)]
    return pa.concat_tables(ray.get(later)).sort_by([("ordinal", "ascending"), ("position", "ascending")])


def _candidates(holders: Sequence[Holder], first: int, read: Reader, num_parts: int, *suspects: pa.Table) -> Any:
    """The rows that suspects stand for (`CANDIDATES`), in tables by hash."""
    together = pa.concat_tables(suspects)
    ordinals, hashes = together["ordinal"].to_numpy(), together["hash"].to_numpy()
    tables: list[list[pa.Table]] = [[CANDIDATES.empty_table()] for _ in range(num_parts)]
    for ordinal in np.unique(ordinals):
        wanted, start = np.unique(hashes[ordinals == ordinal]), 0
        for ids in read(holders[ordinal - first]):
            position = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
            present = ids.drop_null()
            hashed = hash_ids(present)
            is_wanted = is_among(hashed, wanted)
            for part in range(num_parts):
                inside = is_wanted & (hashed % np.uint64(num_parts) == part)
                places = start + position[inside]
                columns = [present.filter(pa.array(inside)), np.full(len(places), ordinal), places]
                tables[part].append(pa.table(columns, schema=CANDIDATES))
            start += len(ids)
    combined = tuple(pa.concat_tables(of_part).combine_chunks() for of_part in tables)
    return combined if num_parts > 1 else combined[0]


def _later(named: int | None, *candidates: pa.Table) -> pa.Table:
    later = later_occurrences(pa.concat_tables(candidates))
    if named is None or later.num_rows <= named:
        return later
    ids = pa.concat_arrays([later["doc_id"].combine_chunks()[:named], pa.nulls(later.num_rows - named, pa.string())])
    return later.set_column(0, CANDIDATES.field("doc_id"), ids)


def _num_cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))
