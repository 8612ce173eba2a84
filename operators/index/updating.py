"""What a new snapshot of the embeddings changes in an index.

Rows that are gone or changed (operators.index.comparing) are marked dead in their shard; new and changed rows go to a
further shard. When such patches have become a large part of the index, the shards that carry them are built anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from operators.index.building import FragmentPart
from operators.index.comparing import ShardDiff
from operators.index.group import dead_ordinals
from operators.index.places import Claims, write_moves
from operators.index.planning import group_fragments
from operators.index.snapshot import Deletions, IndexSnapshot, ShardRecord
from operators.storage import Location, write_whole
from operators.store.fragments import FragmentRecord

_MOST_CRUMBS = 16  # shards of less than half the usual size, such as appends leave; more are put together


class Update(BaseModel):
    """How an index follows its embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["auto", "patch", "rebuild"] = Field(
        default="auto",
        description="patch: mark dead rows, put new ones into a further shard; rebuild: build changed shards anew; "
        "auto: patch until patches are more than max_patched",
    )
    max_patched: float = Field(
        default=0.1, ge=0, le=1, description="dead and added rows as a fraction of the index, above which auto rebuilds"
    )
    max_drift: float = Field(
        default=0.15,
        ge=0,
        description="growth of the vectors' mean distance to their centroid, above which the index is trained anew",
    )
    check: Literal["auto", "sizes", "hashes"] = Field(
        default="auto",
        description="how the files of the index are checked before they are used further: sizes: one listing; hashes: "
        "every byte is read; auto: hashes up to 4 GiB. What is lost or damaged is made anew",
    )


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """What to do: shards that stay (by number), rows that die in them, groups of rows for new shards."""

    kept: tuple[int, ...]
    dead: dict[int, NDArray[np.int64]]  # number of a kept shard -> ordinals that die now
    moved: dict[int, dict[str, Claims]]  # number of a kept shard -> its rows that stand in these fragments now
    groups: tuple[tuple[FragmentPart, ...], ...]
    replaced: dict[str, tuple[str, ...]]
    is_patch: bool


def plan_update(
    previous: IndexSnapshot | None,
    records: Sequence[FragmentRecord],
    diffs: Mapping[int, ShardDiff],
    rows_per_shard: int,
    update: Update,
    broken: Collection[int] = (),
) -> UpdatePlan:
    """Decide between patching and rebuilding, and say which shards stay; `diffs` are by shard number.

    With `broken` shards, of which a file is lost or damaged, it is a rebuild.
    """
    if previous is None:
        return UpdatePlan(
            (), {}, {}, tuple(group_fragments([FragmentPart(record) for record in records], rows_per_shard)), {}, False
        )
    if broken or not can_patch(previous):
        return _rebuild(previous, records, rows_per_shard, broken)
    known = set(previous.fragments)
    added = [record for record in records if record.key not in known]
    diffs = _without_rivals(diffs)
    parts = _rows_to_add(added, diffs)
    new_rows = sum(part.num_rows for part in parts)
    dead = {number: diff.dead for number, diff in diffs.items() if len(diff.dead)}
    total = max(1, sum(record.chunks for record in records))
    already = sum(s.deletions.rows for s in previous.shards if s.deletions) + _patch_rows(previous)
    patched = (already + new_rows + sum(len(rows) for rows in dead.values())) / total
    is_append = not dead and not any(s.deletions for s in previous.shards) and _is_whole(parts)
    crumbs = sum(shard.rows < rows_per_shard // 2 for shard in previous.shards)
    is_small = (is_append or patched <= update.max_patched) and crumbs < _MOST_CRUMBS
    if update.mode == "patch" or (update.mode == "auto" and is_small):
        groups = group_fragments(parts, rows_per_shard)
        replaced = _replaced(previous, {record.key for record in records}, diffs)
        moved = {number: diff.surviving for number, diff in diffs.items() if diff.surviving}
        return UpdatePlan(tuple(range(len(previous.shards))), dead, moved, tuple(groups), replaced, True)
    return _rebuild(previous, records, rows_per_shard)


def can_patch(previous: IndexSnapshot) -> bool:
    """Whether it is known where each row of an index stands in its embeddings.

    Earlier versions kept only which fragments may hold the rows that had outlived an update.
    """
    return previous.tracks_rows or not any(shard.deletions or shard.is_patch for shard in previous.shards)


def _rows_to_add(added: Sequence[FragmentRecord], diffs: Mapping[int, ShardDiff]) -> list[FragmentPart]:
    """Of each new fragment the rows that no shard holds yet."""
    held: dict[str, list[Claims]] = {}
    for diff in diffs.values():
        for key, claims in diff.surviving.items():
            held.setdefault(key, []).append(claims)
    parts = []
    for record in added:
        if record.key not in held:
            parts.append(FragmentPart(record))
            continue
        is_new = np.ones(record.chunks, bool)
        for claims in held[record.key]:
            is_new[claims.rows] = False
        if is_new.any():
            parts.append(FragmentPart(record, np.flatnonzero(is_new).astype(np.int32)))
    return parts


def _is_whole(parts: Sequence[FragmentPart]) -> bool:
    return all(part.rows is None for part in parts)


def _patch_rows(previous: IndexSnapshot) -> int:
    """Rows of shards that hold parts of fragments."""
    return sum(shard.rows for shard in previous.shards if shard.is_patch)


def _without_rivals(diffs: Mapping[int, ShardDiff]) -> dict[int, ShardDiff]:
    """The same where no row is claimed by two shards: the first of them holds it, in the others it dies.

    Only rows that are alike (`duplicates: keep_all`) have rivals.
    """
    claimed: dict[str, int] = {}
    for diff in diffs.values():
        for key, claims in diff.surviving.items():
            if len(claims.rows):
                claimed[key] = max(claimed.get(key, 0), int(claims.rows[-1]) + 1)
    is_taken = {key: np.zeros(size, bool) for key, size in claimed.items()}
    settled = {}
    for number, diff in diffs.items():
        surviving, losing = {}, [diff.dead]
        for key, claims in diff.surviving.items():
            rival = is_taken[key][claims.rows]
            is_taken[key][claims.rows] = True
            surviving[key] = claims.where(~rival) if rival.any() else claims
            losing.append(claims.ordinals[rival])
        dead = np.sort(np.concatenate(losing)) if sum(map(len, losing)) > len(diff.dead) else diff.dead
        settled[number] = ShardDiff(dead, surviving, diff.moved)
    return settled


def _replaced(
    previous: IndexSnapshot, keys: Collection[str], diffs: Mapping[int, ShardDiff]
) -> dict[str, tuple[str, ...]]:
    """Where the surviving rows of fragments of the id maps may be found in the embeddings (`keys`) now."""
    now = {f: dict.fromkeys(key for key in held if key in keys) for f, held in previous.replaced.items()}
    for diff in diffs.values():
        for fragment, held in diff.moved.items():
            now.setdefault(fragment, {}).update(dict.fromkeys(held))
    return {fragment: tuple(held) for fragment, held in now.items() if held}


def _rebuild(
    previous: IndexSnapshot, records: Sequence[FragmentRecord], rows_per_shard: int, broken: Collection[int] = ()
) -> UpdatePlan:
    """Keep shards that are as a fresh build would make them; the fragments of all others are grouped anew."""
    chunks = {record.key: record.chunks for record in records}
    kept = []
    for number, shard in enumerate(previous.shards):
        is_whole = all(chunks.get(part.key) == part.rows for part in shard.fragments)
        is_patched = shard.deletions is not None or shard.moves is not None or shard.is_patch or number in broken
        if is_whole and shard.fragments and not is_patched and shard.rows >= rows_per_shard // 2:
            kept.append(number)
    covered = {part.key for number in kept for part in previous.shards[number].fragments}
    rest = [FragmentPart(record) for record in records if record.key not in covered]
    return UpdatePlan(tuple(kept), {}, {}, tuple(group_fragments(rest, rows_per_shard)), {}, False)


def patch(
    index: Location, shard: ShardRecord, dead: NDArray[np.int64] | None, moved: Mapping[str, Claims]
) -> ShardRecord:
    """The shard with further rows dead, and others moved; both go into files of their own, named by their content."""
    dying = np.empty(0, np.int64) if dead is None else dead
    moves = write_moves(index, shard, dying, moved)
    deletions = shard.deletions if dead is None else _bury(index, shard, dead)
    return shard.model_copy(update={"deletions": deletions, "moves": moves})


def _bury(index: Location, shard: ShardRecord, dead: NDArray[np.int64]) -> Deletions:
    every = np.union1d(dead_ordinals(index, shard), dead).astype(np.int64)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"ordinal": every}), sink, compression="zstd")
    payload = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(payload).hexdigest()
    path = f"shards/{shard.key}.dead-{digest[:12]}.parquet"
    write_whole(index / path, payload)
    return Deletions(path=path, rows=len(every), sha256=digest)


def drift(previous_distance: float | None, shards: Sequence[ShardRecord]) -> float:
    """How much farther vectors lie from their centroids than when the index was new; 0 where that has no meaning."""
    now = mean_distance(shards)
    return 0.0 if not previous_distance or now is None else now / previous_distance - 1


def mean_distance(shards: Sequence[ShardRecord]) -> float | None:
    """Mean distance to the nearest centroid over shards."""
    measured = [(s.distance, s.rows) for s in shards if s.distance is not None and s.rows]
    return sum(d * n for d, n in measured) / sum(n for _, n in measured) if measured else None
