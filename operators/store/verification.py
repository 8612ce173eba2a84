"""Prove from storage alone that a unit's fragments hold every row of the source exactly once, and sound vectors.

A unit is checked at a time: its source is read again, its fragments are read back, and the two must agree. Memory is
one fragment and one block of the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.corpus.reading import read_fragments
from operators.corpus.source import Source
from operators.embedder.quantization import to_arrow
from operators.embedder.sparse_vectors import INDICES, WEIGHTS, SparseVectors
from operators.embedder.vectors import Vectors
from operators.storage import Location, exists, open_input
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord, data_file, output_schema, read_table, rejected_file
from operators.work.fragment import REJECTED_SCHEMA, FragmentBatch

# Norms of vectors that are stored in fewer bits; float16 keeps 11 bits a component, int8 steps are averaged over them.
_NORM_TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "int8": 3e-2}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and with which fragment."""

    key: str
    message: str


def verify_unit(
    dataset: Location, identity: Identity, source: Source, records: Sequence[FragmentRecord]
) -> Iterator[Problem]:
    """What is wrong with the fragments of one unit (`records` are all of them, in order)."""
    unit = records[0].fragment.unit
    by_part = {record.fragment.part: record for record in records}
    for batch in read_fragments(unit, source, identity.keep):
        record = by_part.pop(batch.fragment.part, None)
        if record is None:
            yield Problem(
                batch.fragment.key, f"the source has {batch.counts.rows} rows for this fragment, which is missing"
            )
            continue
        yield from verify_fragment(dataset, identity, record)
        yield from _compare_to_source(dataset, record, batch)
    for record in by_part.values():
        yield Problem(record.key, "the source has no rows for this fragment any more")


def verify_fragment(dataset: Location, identity: Identity, record: FragmentRecord) -> Iterator[Problem]:
    """What is wrong with one fragment's files, without a look at the source."""
    location = data_file(dataset, record.key)
    try:
        with open_input(location) as stream:
            file = pq.ParquetFile(stream)
            table = file.read()
    except (OSError, pa.ArrowInvalid) as error:
        yield Problem(
            record.key, f"the data file does not read ({type(error).__name__}): remove it and run embed again"
        )
        return
    expected = output_schema(identity)
    if not table.schema.remove_metadata().equals(expected):
        yield Problem(record.key, f"the columns are {_columns(table.schema)}; expected {_columns(expected)}")
        return
    if table.num_rows != record.chunks:
        yield Problem(record.key, f"the data file has {table.num_rows} vectors, the snapshot says {record.chunks}")
    rejected = rejected_rows(dataset, record)
    if rejected.num_rows != record.rejected:
        yield Problem(record.key, f"{rejected.num_rows} rows are in rejected/, the snapshot says {record.rejected}")
    documents = int(pc.sum(pc.equal(table["chunk"], 0)).as_py() or 0)
    if documents + rejected.num_rows != record.rows:
        yield Problem(
            record.key,
            f"{documents} documents and {rejected.num_rows} rejected rows do not add up to {record.rows} rows",
        )
    for message in (*_chunk_faults(table), *_vector_faults(table, identity)):
        yield Problem(record.key, message)


def rejected_rows(dataset: Location, record: FragmentRecord) -> pa.Table:
    """The rejected rows of a fragment; an empty table where there are none."""
    location = rejected_file(dataset, record.key)
    if record.rejected == 0 and not exists(location):
        return REJECTED_SCHEMA.empty_table()
    try:
        return read_table(location)
    except (OSError, pa.ArrowInvalid):
        return REJECTED_SCHEMA.empty_table()


def worst_cosine(stored: pa.Table, again: Vectors, identity: Identity) -> float:
    """The least cosine between stored vectors, dense or sparse, and those made again of their texts."""
    least = [1.0]
    if identity.dim:
        least.append(_worst_dense(_one_array(stored["embedding"]), again.values_ND, identity))
    if identity.sparse_dim:
        assert again.sparse is not None, "the recipe has a sparse head"
        least.append(float(SparseVectors.from_table(stored).cosines(again.sparse).min(initial=1.0)))
    return min(least)


def _worst_dense(stored: pa.FixedSizeListArray, again_ND: NDArray[np.float32], identity: Identity) -> float:
    """The least cosine; for binary the least share of equal bits."""
    if identity.dtype == "binary":
        different = np.unpackbits(_values(to_arrow(again_ND, "binary")) ^ _values(stored), axis=1).mean(axis=1)
        return float(1 - different.max(initial=0.0))
    values = _values(stored).astype(np.float32)
    norms = np.linalg.norm(values, axis=1) * np.linalg.norm(again_ND, axis=1)
    return float((np.einsum("nd,nd->n", values, again_ND) / norms).min(initial=1.0))


def _compare_to_source(dataset: Location, record: FragmentRecord, batch: FragmentBatch) -> Iterator[Problem]:
    if batch.counts.rows != record.rows and record.ids_digest:
        yield Problem(
            record.key, f"the source has {batch.counts.rows} rows here, the fragment accounts for {record.rows}"
        )
        return
    if batch.ids_digest != record.ids_digest and record.ids_digest:
        yield Problem(record.key, "the rows of the source are not those that were embedded (ids or row numbers differ)")
        return
    try:
        table = read_table(data_file(dataset, record.key), ["source_path", "source_row", "chunk", "doc_id"])
    except (OSError, pa.ArrowInvalid):
        return  # verify_fragment has said so
    first = table.filter(pc.equal(table["chunk"], 0))
    rejected = rejected_rows(dataset, record)
    accounted = _places(first) + _places(rejected)
    expected = _places(batch.table) + _places(batch.rejected)
    if record.ids_digest and sorted(accounted, key=str) != sorted(expected, key=str):
        missing = len(set(expected) - set(accounted))
        twice = len(accounted) - len(set(accounted))
        yield Problem(
            record.key, f"{missing} rows of the source are neither embedded nor rejected, {twice} are there twice"
        )
    elif record.ids_digest:
        ids = dict(zip(expected, _ids(batch.table) + _ids(batch.rejected), strict=True))
        changed = sum(
            ids[place] != doc_id for place, doc_id in zip(accounted, _ids(first) + _ids(rejected), strict=True)
        )
        if changed:
            yield Problem(record.key, f"{changed} rows have another document id than in the source")


def _places(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["source_path"].to_pylist(), table["source_row"].to_pylist(), strict=True))


def _ids(table: pa.Table) -> list[str | None]:
    ids: list[str | None] = table["doc_id"].to_pylist()
    return ids


def _chunk_faults(table: pa.Table) -> Iterator[str]:
    """Chunks of a document stand one after the other, numbered from 0."""
    if not table.num_rows:
        return
    chunk = table["chunk"].to_numpy()
    row = table["source_row"].to_numpy()
    follows = np.concatenate([[False], (chunk[1:] == chunk[:-1] + 1) & (row[1:] == row[:-1])])
    broken = int((~(follows | (chunk == 0))).sum())
    if broken:
        yield f"{broken} chunks do not follow the chunk before them"


def _vector_faults(table: pa.Table, identity: Identity) -> Iterator[str]:
    if identity.sparse_dim:
        yield from _sparse_faults(table, identity)
    if identity.dtype == "binary" or not identity.dim or not table.num_rows:
        return
    values = np.concatenate([_values(chunk) for chunk in table["embedding"].chunks]).astype(np.float32)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        yield f"{int((~finite).sum())} vectors are not finite"
    norms = np.linalg.norm(values[finite], axis=1) * (identity.scale or 1.0)
    if (norms == 0).any():
        yield f"{int((norms == 0).sum())} vectors are zero"
    tolerance = _NORM_TOLERANCE[identity.dtype]
    if identity.normalized and (np.abs(norms - 1) > tolerance).any():
        yield f"{int((np.abs(norms - 1) > tolerance).sum())} vectors have not length 1 (the farthest {norms.max():.4f})"


def _sparse_faults(table: pa.Table, identity: Identity) -> Iterator[str]:
    indices, weights = table[INDICES], table[WEIGHTS]
    if indices.null_count or weights.null_count:
        yield f"{max(indices.null_count, weights.null_count)} sparse vectors are missing (null)"
        return
    if not pc.list_value_length(indices).equals(pc.list_value_length(weights)):
        yield "sparse vectors have another number of indices than of weights"
        return
    vectors = SparseVectors.from_table(table)
    yield from vectors.faults(identity.sparse_dim)
    if not identity.dim and not vectors.lengths_N.all():
        yield f"{int((vectors.lengths_N == 0).sum())} sparse vectors have no entries, and there are no dense ones"


def _values(vectors: pa.FixedSizeListArray) -> NDArray[Any]:
    values: NDArray[Any] = vectors.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(vectors), vectors.type.list_size)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
