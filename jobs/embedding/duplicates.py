"""Duplicate document ids over the whole source, found before anything is embedded; and those of a dataset.

What is committed came first; after that the order of the source counts. Few ids are read here, many are compared on Ray
(jobs/embedding/id_comparison.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.embedding.backlog import Backlog
from jobs.embedding.config import EmbedConfig
from jobs.embedding.id_comparison import Holder, Reader, find_later
from operators.corpus.duplicates import (
    CANDIDATES,
    NAMED,
    complaint,
    later_occurrences,
)
from operators.corpus.reading import read_rows
from operators.corpus.source import Source
from operators.errors import InputError
from operators.storage import Location
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord, data_file, read_table
from operators.store.id_check import Role

if TYPE_CHECKING:
    pass

# A source of so many bytes is read here, beside an output of so many fragments and vectors
_READ_HERE_BYTES, _READ_HERE_FILES, _READ_HERE_IDS = 16 << 20, 64, 200_000


def duplicate_positions(
    config: EmbedConfig, dataset: Location, identity: Identity, backlog: Backlog
) -> dict[str, tuple[int, ...]]:
    """Places (0-based in the unit) of rows whose id came before, by digest of the pending unit they are in.

    Raises InputError where the config says that duplicates are an error.
    """
    if not config.source.checks_ids:
        return {}
    pending = backlog.pending
    unfinished = {unit.digest for unit in pending}
    stored = _stored(r for r in backlog.records.values() if r.fragment.unit.digest not in unfinished)
    holders = [*stored, *(Holder(unit.digest, (), unit, unit.size_bytes) for unit in pending)]
    roles: list[Role] = ["stored"] * len(stored)
    roles += ["pending"] * len(pending)
    read = functools.partial(_ids, dataset=dataset, source=config.source, keep=identity.keep)
    later = _later_here(holders, read) if reads_ids_here(backlog) else find_later(dataset, holders, roles, read, NAMED)
    later = later.filter(pc.greater_equal(later["ordinal"], len(stored)))
    return _places(later, [holder.digest for holder in holders], config.source)


def reads_ids_here(backlog: Backlog) -> bool:
    """Whether there are so few ids that this process reads all of them, while a first worker would still start."""
    stored = backlog.records
    return (
        sum(unit.size_bytes for unit in backlog.pending) <= _READ_HERE_BYTES
        and len(stored) <= _READ_HERE_FILES
        and sum(record.chunks for record in stored.values()) <= _READ_HERE_IDS
    )


def _places(later: pa.Table, digests: Sequence[str], source: Source) -> dict[str, tuple[int, ...]]:
    """The positions of rows (`CANDIDATES`) by digest of their unit; InputError where there may be none."""
    if later.num_rows and source.duplicates == "error":
        raise InputError(complaint(later))
    places: dict[str, tuple[int, ...]] = {}
    for batch in later.group_by("ordinal", use_threads=False).aggregate([("position", "list")]).to_batches():
        for ordinal, positions in zip(batch["ordinal"].to_pylist(), batch["position_list"], strict=True):
            places[digests[ordinal]] = tuple(positions.as_py())
    return places


def duplicated_in_store(
    dataset: Location, records: Sequence[FragmentRecord], source: Source, keep: pa.Schema
) -> Iterator[tuple[str, str]]:
    """Ids that stand in the dataset a second time, with the key of the fragment they stand in."""
    holders, chunks = _stored(records), {record.key: record.chunks for record in records}
    read = functools.partial(_ids, dataset=dataset, source=source, keep=keep)
    for row in find_later(dataset, holders, ["checked"] * len(holders), read, None).to_pylist():
        keys = holders[row["ordinal"]].stored
        ends = np.cumsum([chunks[key] for key in keys])
        yield row["doc_id"], keys[int(np.searchsorted(ends, row["position"], "right"))]


def duplicated_in_small_store(
    dataset: Location, records: Sequence[FragmentRecord], source: Source, keep: pa.Schema
) -> Iterator[tuple[str, str]]:
    """What `duplicated_in_store` finds, by reading all ids here: no Ray, and no hashes on storage."""
    holders = [Holder(record.key, (record.key,), None, record.bytes) for record in records]
    read = functools.partial(_ids, dataset=dataset, source=source, keep=keep)
    for row in _later_here(holders, read).to_pylist():
        yield row["doc_id"], records[row["ordinal"]].key


def _later_here(holders: Sequence[Holder], read: Reader) -> pa.Table:
    """What `find_later` finds, by reading all ids here: without Ray, and without hashes on storage."""
    tables = [CANDIDATES.empty_table()]
    for ordinal, holder in enumerate(holders):
        start = 0
        for ids in read(holder):
            places = pa.array(np.arange(start, start + len(ids)))
            columns = [ids, pa.array(np.full(len(ids), ordinal)), places]
            tables.append(pa.table(columns, schema=CANDIDATES).filter(ids.is_valid()))
            start += len(ids)
    return later_occurrences(pa.concat_tables(tables))


def _stored(records: Iterable[FragmentRecord]) -> list[Holder]:
    by_unit: dict[str, list[FragmentRecord]] = {}
    for record in records:
        by_unit.setdefault(record.fragment.unit.digest, []).append(record)
    return [Holder(unit, tuple(r.key for r in of), None, sum(r.bytes for r in of)) for unit, of in by_unit.items()]


def _ids(holder: Holder, dataset: Location, source: Source, keep: pa.Schema) -> Iterator[pa.Array]:
    """Ids of a holder in order; null where a row is rejected anyhow, or is not a document's first chunk."""
    for key in holder.stored:
        yield _first_ids(dataset, key)
    if holder.unit is not None:
        for rows in read_rows(holder.unit, source, keep):
            yield pc.if_else(pc.is_null(rows["reason"]), rows["doc_id"], None).combine_chunks()


def _first_ids(dataset: Location, key: str) -> pa.Array:
    """The ids of a fragment's vectors in order, each document's once; null for its further chunks."""
    table = read_table(data_file(dataset, key), ["doc_id", "chunk"])
    return pc.if_else(pc.equal(table["chunk"], 0), table["doc_id"], None).combine_chunks()
