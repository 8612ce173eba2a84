"""Fragment files: round trips, replacement, and what the vectors cost on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.corpus.reading import read_fragments
from operators.embedder.quantization import OutputDtype, to_arrow
from operators.storage import Location, exists
from operators.store.fragments import (
    data_file,
    output_schema,
    read_record,
    read_table,
    record_from_dict,
    rejected_file,
    write_fragment,
)
from tests.operators.store.stored_fragments import (
    KEEP,
    embedded,
    make_dataset,
    make_identity,
    make_source,
    unit_vectors,
)

DTYPES: list[OutputDtype] = ["float32", "float16", "int8", "binary"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read_back(tmp_path: Path, dtype: OutputDtype) -> None:
    identity = make_identity(dtype)
    source, unit = make_source(tmp_path)
    dataset = Location(str(tmp_path / "vectors"))
    for batch in read_fragments(unit, source, KEEP):
        made = embedded(batch, identity)
        record = write_fragment(dataset, identity, made)
        location = data_file(dataset, record.key)
        table = read_table(location)
        assert table.schema.remove_metadata() == output_schema(identity)
        assert table.equals(made.table.select(table.column_names).cast(table.schema))
        assert read_table(rejected_file(dataset, record.key)).equals(made.rejected)
        assert read_record(location) == record
        assert record_from_dict(dataclasses.asdict(record)) == record
        assert record.bytes == Path(location.url).stat().st_size
        counts = (record.rows, record.rejected, record.chunks, record.tokens)
        assert counts == (batch.counts.rows, batch.rejected.num_rows, table.num_rows, 7 * table.num_rows)
        assert record.ids_digest == batch.ids_digest


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_per_component_on_disk(tmp_path: Path, dtype: OutputDtype) -> None:
    """Float vectors are stored plain; int8 and binary must not grow to Parquet's 32-bit integers."""
    dim, num_rows = 256, 2000
    identity = make_identity(dtype, dim, scale=3 / 127 / 16 if dtype == "int8" else None)
    dataset, _, records = make_dataset(tmp_path, identity, num_rows, num_rows)
    (record,) = records
    file = pq.ParquetFile(data_file(dataset, record.key).url)
    columns = [
        file.metadata.row_group(g).column(c)
        for g in range(file.metadata.num_row_groups)
        for c in range(file.metadata.num_columns)
    ]
    vectors = sum(column.total_compressed_size for column in columns if column.path_in_schema.startswith("embedding"))
    per_component = vectors / (record.chunks * dim)
    expected = {"float32": 4, "float16": 2, "int8": 1, "binary": 1 / 8}[dtype]
    assert 0.8 * expected < per_component < 1.05 * expected, per_component


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0), ("float16", 2**-11), ("int8", 0.5 / 127)])
def test_vectors_read_back_as_near_as_their_type_allows(tmp_path: Path, dtype: OutputDtype, error: float) -> None:
    identity = make_identity(dtype)
    dataset, _, records = make_dataset(tmp_path, identity)
    table = read_table(data_file(dataset, records[0].key))
    stored = table["embedding"].combine_chunks().flatten().to_numpy().astype(np.float32).reshape(-1, identity.dim)
    difference = np.abs(stored * (identity.scale or 1) - unit_vectors(len(stored), identity.dim)).max()
    assert difference <= error * 1.001


def test_writing_again_is_the_same_and_replaces(tmp_path: Path) -> None:
    identity = make_identity()
    source, unit = make_source(tmp_path)
    dataset = Location(str(tmp_path / "vectors"))
    batch = next(read_fragments(unit, source, KEEP))
    once = write_fragment(dataset, identity, embedded(batch, identity))
    content = Path(data_file(dataset, once.key).url).read_bytes()
    assert write_fragment(dataset, identity, embedded(batch, identity)) == once
    assert Path(data_file(dataset, once.key).url).read_bytes() == content
    other = embedded(batch, identity, seed=1)
    write_fragment(dataset, identity, other)
    assert read_table(data_file(dataset, once.key))["embedding"].equals(
        other.table["embedding"].cast(pa.list_(pa.float32(), identity.dim))
    )
    assert sorted(p.name for p in (tmp_path / "vectors").rglob("*.parquet")) == [f"{once.key}.parquet"] * 2


def test_rejected_rows_of_an_earlier_attempt_go(tmp_path: Path) -> None:
    identity = make_identity()
    source, unit = make_source(tmp_path)
    dataset = Location(str(tmp_path / "vectors"))
    batch = embedded(next(read_fragments(unit, source, KEEP)), identity)
    record = write_fragment(dataset, identity, batch)
    assert record.rejected == 1
    write_fragment(dataset, identity, dataclasses.replace(batch, rejected=batch.rejected.slice(0, 0)))
    assert not exists(rejected_file(dataset, record.key))


def test_a_fragment_without_vectors(tmp_path: Path) -> None:
    identity = make_identity("int8")
    source, unit = make_source(tmp_path, num_rows=0)
    dataset = Location(str(tmp_path / "vectors"))
    (batch,) = read_fragments(unit, source, KEEP)
    batch = embedded(batch, identity)
    record = write_fragment(dataset, identity, batch)
    assert (record.rows, record.chunks, record.rejected, record.fragment.last) == (0, 0, 0, True)
    assert read_table(data_file(dataset, record.key)).schema.remove_metadata() == output_schema(identity)
    assert read_record(data_file(dataset, record.key)) == record


def test_vectors_of_the_wrong_width_are_not_written(tmp_path: Path) -> None:
    source, unit = make_source(tmp_path)
    batch = embedded(next(read_fragments(unit, source, KEEP)), make_identity(dim=8))
    wrong = batch.table.set_column(
        batch.table.column_names.index("embedding"),
        "embedding",
        to_arrow(unit_vectors(batch.table.num_rows, 4), "float32"),
    )
    dataset = Location(str(tmp_path / "vectors"))
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError)):
        write_fragment(dataset, make_identity(dim=8), dataclasses.replace(batch, table=wrong))
    assert not exists(data_file(dataset, batch.fragment.key))
