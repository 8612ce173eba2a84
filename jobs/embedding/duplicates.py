"""Duplicate document ids over the whole source, found on Ray before anything is embedded.

    committed fragments, then pending units  ->  64-bit hashes  ->  suspects by partition  ->  ids of the suspects

What is committed came first; after that the order of the source counts. The hashes stay in Ray's object store (which
spills to disk); the driver sees the suspects alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from jobs.embedding.backlog import Backlog
from jobs.embedding.config import EmbedConfig
from operators.corpus.duplicates import IDS_PER_PARTITION, Occurrence, find_suspects, hash_ids, later_occurrences
from operators.corpus.reading import read_rows
from operators.corpus.source import Source
from operators.errors import InputError
from operators.storage import Location
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord, data_file, read_table
from operators.work.fragment import Unit, unit_from_dict

_SHOWN = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Something that holds ids: a committed fragment, or a unit still to be read."""

    committed: str | None  # key
    unit: Unit | None


def duplicate_positions(
    config: EmbedConfig, dataset: Location, identity: Identity, backlog: Backlog
) -> dict[str, tuple[int, ...]]:
    """Places (0-based in the unit) of rows whose id came before, by digest of the pending unit they are in.

    Raises InputError where the config says that duplicates are an error.
    """
    if config.source.id is None or config.source.duplicates == "keep_all":
        return {}
    pending = backlog.pending
    unfinished = {unit.digest for unit in pending}
    committed = [r.key for r in backlog.records.values() if r.fragment.unit.digest not in unfinished]
    parts = [Part(key, None) for key in committed] + [Part(None, unit) for unit in pending]
    later = _later_occurrences(parts, dataset, config.source, identity.keep)
    if later and config.source.duplicates == "error":
        raise InputError(_complaint(later))
    places: dict[str, list[int]] = {}
    for place in later:
        unit = parts[place.ordinal].unit
        assert unit is not None, "committed fragments were checked when they were pending"
        places.setdefault(unit.digest, []).append(place.position)
    return {digest: tuple(positions) for digest, positions in places.items()}


def duplicated_in_store(
    dataset: Location, records: Sequence[FragmentRecord], source: Source, keep: pa.Schema
) -> Iterator[tuple[str, str]]:
    """Ids that stand in the dataset a second time, with the key of the fragment they stand in."""
    parts = [Part(record.key, None) for record in records]
    for place, doc_id in _later_occurrences(parts, dataset, source, keep).items():
        yield doc_id, records[place.ordinal].key


def _later_occurrences(
    parts: Sequence[Part], dataset: Location, source: Source, keep: pa.Schema
) -> dict[Occurrence, str]:
    rows = [pa.table({"part": [json.dumps(dataclasses.asdict(p))], "ordinal": [i]}) for i, p in enumerate(parts)]
    if not rows:
        return {}
    hashed = functools.partial(_hash_part, dataset=dataset, source=source, keep=keep)
    hashes = (
        ray.data.from_arrow(rows).map_batches(hashed, batch_size=1, batch_format="pyarrow", num_cpus=0.5).materialize()
    )
    num_partitions = max(1, -(-hashes.count() // IDS_PER_PARTITION))
    blocks = hashes.to_arrow_refs()
    find = ray.remote(num_cpus=0.5)(_suspects_in)
    found = [find.remote(partition, num_partitions, blocks) for partition in range(num_partitions)]
    suspects: dict[int, list[int]] = {}
    for in_partition in ray.get(found):
        for ordinal, positions in in_partition.items():
            suspects.setdefault(ordinal, []).extend(positions)
    if not suspects:
        return {}
    look = ray.remote(num_cpus=0.5)(_ids_at)
    refs = [look.remote(o, parts[o], sorted(p), dataset, source, keep) for o, p in suspects.items()]
    return later_occurrences(itertools.chain.from_iterable(ray.get(refs)))


def _hash_part(block: pa.Table, dataset: Location, source: Source, keep: pa.Schema) -> pa.Table:
    tables = []
    for row in block.to_pylist():
        part = _part_from_dict(json.loads(row["part"]))
        start = 0
        for ids in _ids(part, dataset, source, keep):
            present = np.flatnonzero(pc.is_valid(ids).to_numpy(zero_copy_only=False))
            hashes = hash_ids(ids.take(pa.array(present)))
            columns = {"ordinal": np.full(len(present), row["ordinal"]), "position": present + start, "hash": hashes}
            tables.append(pa.table(columns))
            start += len(ids)
    schema = pa.schema([("ordinal", pa.int64()), ("position", pa.int64()), ("hash", pa.uint64())])
    return pa.concat_tables(tables).cast(schema) if tables else schema.empty_table()


def _suspects_in(partition: int, num_partitions: int, blocks: list[ray.ObjectRef]) -> dict[int, list[int]]:
    def parts() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for ref in blocks:
            table = ray.get(ref)
            ordinals = table["ordinal"].to_numpy()
            for ordinal in np.unique(ordinals):
                inside = ordinals == ordinal
                yield int(ordinal), table["position"].to_numpy()[inside], table["hash"].to_numpy()[inside]

    return find_suspects(parts(), partition, num_partitions)


def _ids_at(
    ordinal: int, part: Part, positions: list[int], dataset: Location, source: Source, keep: pa.Schema
) -> list[tuple[str, Occurrence]]:
    wanted, start, found = set(positions), 0, []
    for ids in _ids(part, dataset, source, keep):
        for position in wanted & set(range(start, start + len(ids))):
            found.append((ids[position - start].as_py(), Occurrence(ordinal, position)))
        start += len(ids)
    return found


def _ids(part: Part, dataset: Location, source: Source, keep: pa.Schema) -> Iterator[pa.Array]:
    """Ids of a part in order; null where a row is rejected anyhow, or is not a document's first chunk."""
    if part.committed is not None:
        table = read_table(data_file(dataset, part.committed), ["doc_id", "chunk"])
        yield pc.if_else(pc.equal(table["chunk"], 0), table["doc_id"], None).combine_chunks()
        return
    assert part.unit is not None
    for rows in read_rows(part.unit, source, keep):
        yield pc.if_else(pc.is_null(rows["reason"]), rows["doc_id"], None).combine_chunks()


def _part_from_dict(part: dict[str, object]) -> Part:
    unit = part["unit"]
    return Part(part["committed"], None if unit is None else unit_from_dict(unit))  # type: ignore[arg-type]  # JSON


def _complaint(later: dict[Occurrence, str]) -> str:
    ids = list(dict.fromkeys(later.values()))
    shown = ", ".join(repr(doc_id) for doc_id in ids[:_SHOWN])
    return (
        f"make the ids unique, or set source.duplicates to keep_first or keep_all: {len(later):,} rows have an id that "
        f"came before ({shown}{', ...' if len(ids) > _SHOWN else ''})"
    )
