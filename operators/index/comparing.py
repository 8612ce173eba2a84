"""Which rows of a shard the new embeddings still hold.

Rows are followed by document and piece: a fragment that was written anew because its file changed mostly holds what the
old one held. What is compared with what is planned over records alone, in time and memory linear in their number. A
comparison takes the id map of its shard and about as many new rows at a time, however large the changed file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.index.group import dead_ordinals
from operators.index.snapshot import IndexSnapshot, ShardRecord, shard_file
from operators.storage import Location, open_input
from operators.store.fragments import FragmentRecord, data_file, read_table

_KEYS = ("doc_id", "chunk")
_FEWEST_NEW_ROWS = 250_000  # compared at once: below that, looking the shard's own rows up anew costs more


@dataclass(frozen=True, slots=True)
class Comparison:
    """What of a shard may be gone: `fragments` of its id map, whose rows `candidates` (keys) may hold now."""

    fragments: frozenset[str]
    candidates: tuple[str, ...]  # one object for all shards that have the same


@dataclass(frozen=True, slots=True)
class ShardDiff:
    """What became of the rows of one shard whose fragments are gone."""

    dead: NDArray[np.int64]  # ordinals of rows that no candidate holds unchanged
    surviving: dict[str, NDArray[np.int32]]  # candidate -> its rows that this shard holds already
    moved: dict[str, tuple[str, ...]]  # compared fragment of the id map -> candidates that hold rows of it now


def plan_comparisons(
    previous: IndexSnapshot, gone: Sequence[FragmentRecord], added: Sequence[FragmentRecord]
) -> dict[int, Comparison]:
    """By number, the shards that hold rows of `gone` fragments, and the fragments that may hold these rows now.

    Those are the added fragments that read some of the same source files. A shard keeps naming the fragment that its
    rows were built from, so rows that outlived an earlier update are found by `previous.replaced`.
    """
    paths_of = {record.key: _paths(record) for record in gone}
    by_path: dict[str, list[str]] = {}
    for record in added:
        for path in _paths(record):
            by_path.setdefault(path, []).append(record.key)
    holders = _holders(previous, paths_of.keys())
    every = frozenset(holders)
    shared: dict[tuple[frozenset[str], frozenset[str]], tuple[str, ...]] = {}
    plan = {}
    for number, shard in enumerate(previous.shards):
        inside = every.intersection(part.key for part in shard.fragments) if shard.fragments else every
        if not inside:
            continue
        now = {key for fragment in inside for key in holders[fragment]}
        paths = frozenset(path for key in now if key in paths_of for path in paths_of[key])
        staying = frozenset(key for key in now if key not in paths_of)
        if (paths, staying) not in shared:
            found = (key for path in sorted(paths) for key in by_path.get(path, ()))
            shared[paths, staying] = tuple(dict.fromkeys((*found, *sorted(staying))))
        plan[number] = Comparison(inside, shared[paths, staying])
    return plan


def _paths(record: FragmentRecord) -> frozenset[str]:
    return frozenset(extent.file.path for extent in record.extents)


def _holders(previous: IndexSnapshot, gone: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Fragments that id maps may name and of which a row may be gone -> the fragments that hold their live rows."""
    holders: dict[str, tuple[str, ...]] = {key: (key,) for key in gone}
    for fragment, now in previous.replaced.items():
        if fragment in gone or any(key in gone for key in now):
            holders[fragment] = tuple(dict.fromkeys((*holders.get(fragment, ()), *now)))
    return holders


def diff_shard(index: Location, shard: ShardRecord, dataset: Location, comparison: Comparison) -> ShardDiff:
    """Compare the rows of a shard's fragments with those of the fragments that may hold them now.

    A row survives where document, piece, text and every kept column are the same: its vector is then the same too.
    """
    old, names = _old_rows(index, shard, comparison.fragments)
    compared = [name for name in old.column_names if name not in ("ordinal", "row", "fragment")]
    old_keys = _joined_keys(old)
    is_alive = np.zeros(old.num_rows, bool)
    surviving: dict[str, NDArray[np.int32]] = {}
    moved: dict[str, dict[str, None]] = {name: {} for name in names}
    for keys, new in _new_rows(dataset, comparison.candidates, compared, max(old.num_rows, _FEWEST_NEW_ROWS)):
        same = _same_rows(old, old_keys, new, compared)
        is_alive[same.place] = True
        number = new["number"].to_numpy()[same.row]
        fragment = old["fragment"].to_numpy()[same.place]
        for n in np.unique(number):
            of_this = number == n
            surviving[keys[n]] = np.sort(new["new_row"].to_numpy()[same.row[of_this]])
            for code in np.unique(fragment[of_this]):
                moved[names[code]][keys[n]] = None
    dead = np.sort(old["ordinal"].to_numpy()[~is_alive])
    return ShardDiff(dead, surviving, {name: tuple(keys) for name, keys in moved.items()})


def _old_rows(index: Location, shard: ShardRecord, fragments: Collection[str]) -> tuple[pa.Table, list[str]]:
    """The live rows of a shard of these fragments, with their ordinals; `fragment` is a place in the names."""
    with open_input(shard_file(index, shard.key, "ids.parquet")) as stream:
        ids = pq.ParquetFile(stream, page_checksum_verification=True).read()
    names = sorted(fragments)
    fragment = pc.index_in(ids["fragment"].cast(pa.string()), value_set=pa.array(names, pa.string()))
    mask = pc.is_valid(fragment).to_numpy().astype(bool)
    mask[dead_ordinals(index, shard)] = False
    at = ids.column_names.index("fragment")
    rows = ids.set_column(at, "fragment", fragment).filter(pa.array(mask))
    return rows.append_column("ordinal", pa.array(np.flatnonzero(mask))), names


def _new_rows(
    dataset: Location, candidates: Sequence[str], columns: Sequence[str], at_least: int
) -> Iterator[tuple[list[str], pa.Table]]:
    """The rows of fragments without their vectors, some `at_least` at a time, with the keys of these fragments.

    `number` is the fragment's place among the keys, `new_row` the row in it.
    """
    keys: list[str] = []
    tables: list[pa.Table] = []
    num_rows = 0
    for place, key in enumerate(candidates):
        table = read_table(data_file(dataset, key), list(columns))
        table = table.append_column("number", pa.array(np.full(table.num_rows, len(keys), np.int32)))
        tables.append(table.append_column("new_row", pa.array(np.arange(table.num_rows, dtype=np.int32))))
        keys.append(key)
        num_rows += table.num_rows
        if num_rows >= at_least or place + 1 == len(candidates):
            yield keys, pa.concat_tables(table.replace_schema_metadata(None) for table in tables)
            keys, tables, num_rows = [], [], 0


@dataclass(frozen=True, slots=True)
class _Same:
    """Pairs of an old and a new row that are equal, by their places in the two tables."""

    place: NDArray[np.int64]
    row: NDArray[np.int64]


def _same_rows(old: pa.Table, old_keys: pa.Array, new: pa.Table, compared: Sequence[str]) -> _Same:
    """Rows that are equal in all compared columns, nulls equal to nulls."""
    # A look-up of one joined key: a hash join of tables takes three times as long.
    found = pc.index_in(_joined_keys(new), value_set=old_keys)
    row = np.flatnonzero(pc.is_valid(found).to_numpy(zero_copy_only=False))
    place = found.drop_null().to_numpy().astype(np.int64)
    new, old = new.take(pa.array(row)), old.take(pa.array(place))
    equal = np.ones(len(row), bool)
    for name in compared:
        if name in _KEYS:
            continue
        both_missing = pc.and_(pc.is_null(old[name]), pc.is_null(new[name]))
        equal &= pc.or_(pc.equal(old[name], new[name]).fill_null(False), both_missing).to_numpy().astype(bool)
    return _Same(place[equal], row[equal])


def _joined_keys(rows: pa.Table) -> pa.Array:
    """Document and piece as one text each, which no other document and piece have."""
    keys = pc.binary_join_element_wise(rows["chunk"].cast(pa.string()), rows["doc_id"], "/")
    return keys.combine_chunks() if keys.num_chunks else pa.array([], pa.string())
