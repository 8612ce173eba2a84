"""What a new snapshot of the embeddings changes in an index.

Rows are followed by document and piece: a fragment that was written anew because its file changed mostly holds what the
old one held. Rows that are gone or changed are marked dead in their shard; new and changed rows go to a further shard.
When such patches have become a large part of the index, the shards that carry them are built anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from operators.index.building import FragmentPart
from operators.index.group import dead_ordinals
from operators.index.planning import group_fragments
from operators.index.snapshot import Deletions, IndexSnapshot, ShardRecord, shard_file
from operators.storage import Location, open_input, write_whole
from operators.store.fragments import FragmentRecord, read_table

_KEYS = ("doc_id", "chunk")
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


@dataclass(frozen=True, slots=True)
class ShardDiff:
    """What became of the rows of one shard whose fragments are gone."""

    dead: NDArray[np.int64]  # ordinals of rows that no new fragment holds unchanged
    surviving: dict[str, NDArray[np.int32]]  # new fragment -> its rows that this shard holds already


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """What to do: shards that stay (by number), rows that die in them, groups of rows for new shards."""

    kept: tuple[int, ...]
    dead: dict[int, NDArray[np.int64]]  # number of a kept shard -> ordinals that die now
    groups: tuple[tuple[FragmentPart, ...], ...]
    replaced: dict[str, tuple[str, ...]]
    is_patch: bool


def related_fragments(
    gone: Sequence[FragmentRecord], added: Sequence[FragmentRecord]
) -> dict[str, tuple[FragmentRecord, ...]]:
    """For each gone fragment the added ones that read some of the same source files."""
    by_path: dict[str, list[FragmentRecord]] = {}
    for record in added:
        for path in {extent.file.path for extent in record.extents}:
            by_path.setdefault(path, []).append(record)
    related = {}
    for record in gone:
        paths = {extent.file.path for extent in record.extents}
        found = {other.key: other for path in sorted(paths) for other in by_path.get(path, ())}
        related[record.key] = tuple(found.values())
    return related


def diff_shard(
    index: Location, shard: ShardRecord, dataset: Location, gone: Collection[str], added: Sequence[FragmentRecord]
) -> ShardDiff:
    """Compare the rows of a shard's gone fragments with those of the fragments that took their place.

    A row survives where document, piece, text and every kept column are the same: its vector is then the same too.
    """
    old = _old_rows(index, shard, gone)
    compared = [name for name in old.column_names if name not in ("ordinal", "row")]
    same = _same_rows(old, _new_rows(dataset, added, compared), compared)
    alive = np.zeros(shard.rows, bool)
    alive[same["ordinal"].to_numpy()] = True
    number, row = same["number"].to_numpy(), same["new_row"].to_numpy()
    surviving = {added[n].key: np.sort(row[number == n]) for n in np.unique(number)}
    ordinals = old["ordinal"].to_numpy()
    return ShardDiff(np.sort(ordinals[~alive[ordinals]]), surviving)


def _new_rows(dataset: Location, added: Sequence[FragmentRecord], columns: Sequence[str]) -> pa.Table:
    """The rows of these fragments without their vectors; `number` is the fragment's place, `new_row` the row in it."""
    tables = []
    for number, record in enumerate(added):
        table = read_table(dataset / "data" / f"{record.key}.parquet", list(columns))
        table = table.append_column("number", pa.array(np.full(table.num_rows, number, np.int32)))
        tables.append(table.append_column("new_row", pa.array(np.arange(table.num_rows, dtype=np.int32))))
    if tables:
        return pa.concat_tables(table.replace_schema_metadata(None) for table in tables)
    numbers = [pa.field(name, pa.int32()) for name in ("number", "new_row")]
    return pa.schema([*(pa.field(name, pa.string()) for name in columns), *numbers]).empty_table()


def _old_rows(index: Location, shard: ShardRecord, gone: Collection[str]) -> pa.Table:
    """The live rows of a shard that come from gone fragments, with their ordinals."""
    with open_input(shard_file(index, shard.key, "ids.parquet")) as stream:
        ids = pq.ParquetFile(stream, page_checksum_verification=True).read()
    mask = pc.is_in(ids["fragment"].cast(pa.string()), pa.array(sorted(gone), pa.string())).to_numpy().astype(bool)
    mask[dead_ordinals(index, shard)] = False
    rows = ids.filter(pa.array(mask)).drop_columns(["fragment"])
    return rows.append_column("ordinal", pa.array(np.flatnonzero(mask)))


def _same_rows(old: pa.Table, new: pa.Table, compared: Sequence[str]) -> pa.Table:
    """Triples (ordinal, number, new_row) of rows that are equal in all compared columns, nulls equal to nulls."""
    if not new.num_rows:
        empty = {"ordinal": pa.int64(), "number": pa.int32(), "new_row": pa.int32()}
        return pa.schema(list(empty.items())).empty_table()
    # A look-up of one joined key: a hash join of tables takes three times as long.
    place = pc.index_in(_keys(new), value_set=_keys(old))
    known = pc.is_valid(place)
    new, old = new.filter(known), old.take(place.filter(known))
    equal = np.ones(new.num_rows, bool)
    for name in compared:
        if name in _KEYS:
            continue
        both_missing = pc.and_(pc.is_null(old[name]), pc.is_null(new[name]))
        equal &= pc.or_(pc.equal(old[name], new[name]).fill_null(False), both_missing).to_numpy().astype(bool)
    pairs = new.select(["number", "new_row"]).append_column("ordinal", old["ordinal"])
    return pairs.filter(pa.array(equal))


def _keys(rows: pa.Table) -> pa.Array:
    """Document and piece as one text each, which no other document and piece have."""
    keys = pc.binary_join_element_wise(rows["chunk"].cast(pa.string()), rows["doc_id"], "/")
    return keys.combine_chunks() if keys.num_chunks else pa.array([], pa.string())


def plan_update(
    previous: IndexSnapshot | None,
    records: Sequence[FragmentRecord],
    diffs: Mapping[int, ShardDiff],
    related: Mapping[str, Sequence[FragmentRecord]],
    rows_per_shard: int,
    update: Update,
) -> UpdatePlan:
    """Decide between patching and rebuilding, and say which shards stay; `diffs` are by shard number."""
    if previous is None:
        return UpdatePlan((), {}, tuple(group_fragments([FragmentPart(r) for r in records], rows_per_shard)), {}, False)
    known = set(previous.fragments)
    added = [record for record in records if record.key not in known]
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
        replaced = _replaced(previous, diffs, related)
        return UpdatePlan(tuple(range(len(previous.shards))), dead, tuple(groups), replaced, True)
    return _rebuild(previous, records, rows_per_shard)


def _rows_to_add(added: Sequence[FragmentRecord], diffs: Mapping[int, ShardDiff]) -> list[FragmentPart]:
    """Of each new fragment the rows that no shard holds yet."""
    parts = []
    for record in added:
        held = [diff.surviving[record.key] for diff in diffs.values() if record.key in diff.surviving]
        if not held:
            parts.append(FragmentPart(record))
            continue
        rows = np.setdiff1d(np.arange(record.chunks, dtype=np.int32), np.concatenate(held), assume_unique=True)
        if len(rows):
            parts.append(FragmentPart(record, rows.astype(np.int32)))
    return parts


def _is_whole(parts: Sequence[FragmentPart]) -> bool:
    return all(part.rows is None for part in parts)


def _patch_rows(previous: IndexSnapshot) -> int:
    """Rows of shards that hold parts of fragments."""
    return sum(shard.rows for shard in previous.shards if shard.is_patch)


def _replaced(
    previous: IndexSnapshot, diffs: Mapping[int, ShardDiff], related: Mapping[str, Sequence[FragmentRecord]]
) -> dict[str, tuple[str, ...]]:
    """Where surviving rows of gone fragments are found in the embeddings now."""
    surviving = {key for diff in diffs.values() for key in diff.surviving}
    now = {gone: tuple(r.key for r in others if r.key in surviving) for gone, others in related.items()}
    older = {
        gone: tuple(dict.fromkeys(k for key in keys for k in now.get(key, (key,))))
        for gone, keys in previous.replaced.items()
    }
    return {gone: keys for gone, keys in {**older, **now}.items() if keys}


def _rebuild(previous: IndexSnapshot, records: Sequence[FragmentRecord], rows_per_shard: int) -> UpdatePlan:
    """Keep shards that are as a fresh build would make them; the fragments of all others are grouped anew."""
    chunks = {record.key: record.chunks for record in records}
    kept = []
    for number, shard in enumerate(previous.shards):
        is_whole = all(chunks.get(part.key) == part.rows for part in shard.fragments)
        if is_whole and shard.fragments and not shard.deletions and shard.rows >= rows_per_shard // 2:
            kept.append(number)
    covered = {part.key for number in kept for part in previous.shards[number].fragments}
    rest = [FragmentPart(record) for record in records if record.key not in covered]
    return UpdatePlan(tuple(kept), {}, tuple(group_fragments(rest, rows_per_shard)), {}, False)


def bury(index: Location, shard: ShardRecord, dead: NDArray[np.int64]) -> ShardRecord:
    """The shard with further rows dead; their ordinals go into a file of their own, named by its content."""
    every = np.union1d(dead_ordinals(index, shard), dead).astype(np.int64)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"ordinal": every}), sink, compression="zstd")
    payload = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(payload).hexdigest()
    path = f"shards/{shard.key}.dead-{digest[:12]}.parquet"
    write_whole(index / path, payload)
    return shard.model_copy(update={"deletions": Deletions(path=path, rows=len(every), sha256=digest)})


def drift(previous_distance: float | None, shards: Sequence[ShardRecord]) -> float:
    """How much farther vectors lie from their centroids than when the index was new; 0 where that has no meaning."""
    now = mean_distance(shards)
    return 0.0 if not previous_distance or now is None else now / previous_distance - 1


def mean_distance(shards: Sequence[ShardRecord]) -> float | None:
    """Mean distance to the nearest centroid over shards."""
    measured = [(s.distance, s.rows) for s in shards if s.distance is not None and s.rows]
    return sum(d * n for d, n in measured) / sum(n for _, n in measured) if measured else None
