"""Which rows of a shard the new embeddings still hold.

Rows are followed by document and piece: a fragment that was written anew because its file changed mostly holds what the
old one held. Every live vector of an index stands for one row of the embeddings (operators.index.places), and a new row
is claimed by one vector at most, also where many rows are alike (`duplicates: keep_all`).

What is compared with what is planned over records alone, in time and memory linear in their number. A comparison takes
the id map of its shard and about as many new rows at a time, however large the changed file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.index.equal_rows import equal_rows
from operators.index.group import dead_ordinals
from operators.index.places import Claims, id_map, moved_rows
from operators.index.snapshot import IndexSnapshot, ShardRecord
from operators.storage import Location
from operators.store.fragments import FragmentRecord, data_file, read_table

_KEYS = ("doc_id", "chunk", "text_hash")
_FEWEST_NEW_ROWS = 250_000  # compared at once: below that, looking the shard's own rows up anew costs more


@dataclass(frozen=True, slots=True)
class Comparison:
    """What of a shard may be gone: its rows in `fragments`, which `candidates` (keys) may hold now."""

    fragments: frozenset[str]
    candidates: tuple[str, ...]  # one object for all shards that have the same


@dataclass(frozen=True, slots=True)
class ShardDiff:
    """What became of the rows of one shard whose fragments are gone."""

    dead: NDArray[np.int64]  # ordinals of rows that no candidate holds unchanged, ascending
    surviving: dict[str, Claims]  # candidate -> its rows that this shard holds already
    moved: dict[str, tuple[str, ...]]  # fragment of the id map -> candidates that hold rows of it now


def plan_comparisons(
    previous: IndexSnapshot, gone: Sequence[FragmentRecord], added: Sequence[FragmentRecord]
) -> dict[int, Comparison]:
    """By number, the shards that may hold rows of `gone` fragments, and the fragments that may hold these rows now.

    Those are the added fragments that read some of the same source files.
    """
    paths_of = {record.key: _paths(record) for record in gone}
    by_path: dict[str, list[str]] = {}
    for record in added:
        for path in _paths(record):
            by_path.setdefault(path, []).append(record.key)
    every, shared = frozenset(paths_of), dict[frozenset[str], tuple[str, ...]]()
    plan = {}
    for number, shard in enumerate(previous.shards):
        inside = every
        if shard.fragments:  # a shard by list may have rows of all
            named = {part.key for part in shard.fragments}
            inside = every.intersection(named)
            inside |= {key for fragment in named for key in previous.replaced.get(fragment, ()) if key in every}
        if not inside:
            continue
        paths = frozenset(path for key in inside for path in paths_of[key])
        if paths not in shared:
            shared[paths] = tuple(dict.fromkeys(key for path in sorted(paths) for key in by_path.get(path, ())))
        plan[number] = Comparison(inside, shared[paths])
    return plan


def _paths(record: FragmentRecord) -> frozenset[str]:
    return frozenset(extent.file.path for extent in record.extents)


def diff_shard(index: Location, shard: ShardRecord, dataset: Location, comparison: Comparison) -> ShardDiff:
    """Compare the rows of a shard that stand in gone fragments with those of the fragments that may hold them now.

    A row survives where document, piece, text and every kept column are the same: its vector is then the same too.
    """
    old = _old_rows(index, shard, comparison.fragments)
    compared = [name for name in old.column_names if name not in ("ordinal", "row", "fragment")]
    rows, ordinals = _OldRows(old, compared), old["ordinal"].to_numpy()
    fragments = old["fragment"].combine_chunks()
    surviving: dict[str, Claims] = {}
    moved: dict[str, dict[str, None]] = {}
    for keys, new in _new_rows(dataset, comparison.candidates, compared, max(old.num_rows, _FEWEST_NEW_ROWS)):
        place, row = rows.claim(new)
        number, new_row = new["number"].to_numpy()[row], new["new_row"].to_numpy()[row]
        for n in np.unique(number):
            mine = np.flatnonzero(number == n)
            mine = mine[np.argsort(new_row[mine])]
            surviving[keys[n]] = Claims(new_row[mine], ordinals[place[mine]])
            for fragment in pc.unique(fragments.take(pa.array(place[mine]))).to_pylist():
                moved.setdefault(fragment, {})[keys[n]] = None
    dead = np.sort(ordinals[rows.is_free])
    return ShardDiff(dead, surviving, {name: tuple(keys) for name, keys in moved.items()})


def _old_rows(index: Location, shard: ShardRecord, fragments: Collection[str]) -> pa.Table:
    """The live rows of a shard that stand in these fragments, with their ordinals; `fragment` is the id map's."""
    ids = id_map(index, shard)
    ids = ids.set_column(ids.column_names.index("fragment"), "fragment", ids["fragment"].cast(pa.string()))
    gone = pa.array(sorted(fragments), pa.string())
    mask = pc.is_in(ids["fragment"], value_set=gone).to_numpy().astype(bool)
    moves = moved_rows(index, shard)
    if moves is not None:
        mask[moves["ordinal"].to_numpy()] = pc.is_in(moves["fragment"], value_set=gone).to_numpy().astype(bool)
    mask[dead_ordinals(index, shard)] = False
    return ids.filter(pa.array(mask)).append_column("ordinal", pa.array(np.flatnonzero(mask)))


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


class _OldRows:
    """Rows of a shard, each of which one new row may claim."""

    def __init__(self, old: pa.Table, compared: Sequence[str]) -> None:
        self._old, self._kept = old, [name for name in compared if name not in _KEYS]
        encoded = _joined_keys(old).dictionary_encode()
        self._keys, self._code = encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False)
        self._is_alike = len(self._keys) < old.num_rows  # some rows have a key in common
        self.is_free = np.ones(old.num_rows, bool)

    def claim(self, new: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of an old and a new row that are equal, by their places in the two tables; each occurs once."""
        # A look-up of one joined key: a hash join of tables takes three times as long.
        found = pc.index_in(_joined_keys(new), value_set=self._keys)
        row = np.flatnonzero(pc.is_valid(found).to_numpy(zero_copy_only=False))
        code = found.drop_null().to_numpy().astype(np.int64)
        place, at = self._pair(code)
        row = row[at]
        ours, theirs = self._old.take(pa.array(place)), new.take(pa.array(row))
        equal = np.ones(len(row), bool)
        for name in self._kept:
            equal &= equal_rows(ours[name], theirs[name])
        self.is_free[place[equal]] = False
        return place[equal], row[equal]

    def _pair(self, code: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Free old rows, and the places in `code` of new rows with the same key: the first with the first, and on."""
        free = np.flatnonzero(self.is_free)
        mine = self._code[free].astype(np.int64)
        if not self._is_alike and len(np.unique(code)) == len(code):
            at_code = np.full(len(self._keys), -1, np.int64)
            at_code[mine] = free
            place = at_code[code]
            return place[place >= 0], np.flatnonzero(place >= 0)
        most = max(len(free), len(code), 1)
        _, ours, theirs = np.intersect1d(
            mine * most + _occurrences(mine), code * most + _occurrences(code), assume_unique=True, return_indices=True
        )
        return free[ours], theirs


def _occurrences(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many equal ones stand before each."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    starts = np.repeat(first, np.diff(first, append=len(codes)))
    counts = np.empty(len(codes), np.int64)
    counts[order] = np.arange(len(codes)) - starts
    return counts


def _joined_keys(rows: pa.Table) -> pa.Array:
    """Document, piece and text as bytes, which no other document, piece and text have."""
    parts = [rows["chunk"].cast(pa.string()), rows["text_hash"], rows["doc_id"]]  # the hash is of 16 bytes
    keys = pc.binary_join_element_wise(*[part.cast(pa.binary()) for part in parts], b"/")
    return keys.combine_chunks() if keys.num_chunks else pa.array([], pa.binary())
