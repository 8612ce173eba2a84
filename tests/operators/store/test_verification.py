"""Verification finds each fault that is planted, and none in a sound dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from operators.corpus.source import Source
from operators.embedder.quantization import OutputDtype, calibrate_scale, to_arrow
from operators.embedder.sparse_vectors import SparseVectors
from operators.embedder.vectors import Vectors
from operators.storage import Location
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord, data_file, rejected_file
from operators.store.verification import verify_fragment, verify_unit, worst_cosine
from tests.operators.store.stored_fragments import (
    make_dataset,
    make_identity,
    make_source,
    sparse_vectors,
    unit_vectors,
)


def problems(dataset: Location, identity: Identity, source: Source, records: list[FragmentRecord]) -> list[str]:
    """What is wrong, as `part: message`."""
    found = verify_unit(dataset, identity, source, records)
    return [f"{int(problem.key.rsplit('-')[-1])}: {problem.message}" for problem in found]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 25])
def test_a_sound_dataset_passes(tmp_path: Path, dtype: OutputDtype, num_rows: int) -> None:
    identity = make_identity(dtype, dim=64)
    dataset, source, records = make_dataset(tmp_path, identity, num_rows)
    assert problems(dataset, identity, source, records) == []


Change = Callable[[pa.Table], pa.Table]


def replace(name: str, change: Callable[[list[Any]], list[Any]]) -> Change:
    def apply(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        return table.set_column(
            at, table.schema.field(at), pa.array(change(table[name].to_pylist()), table.field(at).type)
        )

    return apply


def scaled(factor: float) -> Change:
    return replace("embedding", lambda vectors: [*vectors[:-1], [value * factor for value in vectors[-1]]])


# Row 3 is a document of a single chunk; row 0 and 1 are the chunks of one.
FAULTS: list[tuple[str, Change, str]] = [
    ("nan", scaled(float("nan")), "1 vectors are not finite"),
    ("infinite", scaled(float("inf")), "1 vectors are not finite"),
    ("zero", scaled(0.0), "1 vectors are zero"),
    ("length", scaled(1.01), "1 vectors have not length 1"),
    ("dropped document", lambda t: pa.concat_tables([t.slice(0, 2), t.slice(3)]), "vectors, the snapshot says"),
    ("dropped chunk", lambda t: pa.concat_tables([t.slice(0, 1), t.slice(2)]), "vectors, the snapshot says"),
    ("doubled document", lambda t: pa.concat_tables([t.slice(0, 3), t.slice(2)]), "do not add up to 10 rows"),
    ("one for another", lambda t: t.take([0, 1, 2, 3, 4, 2, *range(6, t.num_rows)]), "1 are there twice"),
    ("chunks in disorder", lambda t: t.take([1, 0, *range(2, t.num_rows)]), "chunks do not follow the chunk before"),
    ("another id", replace("doc_id", lambda ids: [ids[1], ids[1], "x", *ids[3:]]), "1 rows have another document id"),
    ("another row", replace("source_row", lambda rows: [*rows[:2], 99, *rows[3:]]), "1 rows of the source are neither"),
    ("lost column", lambda t: t.drop_columns(["lang"]), "the columns are "),
    (
        "another type",
        lambda t: t.set_column(5, "embedding", t["embedding"].cast(pa.list_(pa.float16(), 16))),
        "halffloat",
    ),
    ("another width", lambda t: t.set_column(5, "embedding", narrow(t)), r"fixed_size_list<.*>\[8\]"),
]


def narrow(table: pa.Table) -> pa.Array:
    return to_arrow(unit_vectors(table.num_rows, 8), "float32")


@pytest.mark.parametrize(("change", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_in_a_data_file_is_found(tmp_path: Path, change: Change, message: str) -> None:
    identity = make_identity()
    dataset, source, records = make_dataset(tmp_path, identity)
    path = data_file(dataset, records[1].key).url
    pq.write_table(change(pq.read_table(path)), path)
    found = problems(dataset, identity, source, records)
    assert any(pc.match_substring_regex(pa.scalar(line), message).as_py() for line in found), found
    assert all(line.startswith("1: ") for line in found), found


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_wrong_length_shows_in_fewer_bits(tmp_path: Path, dtype: OutputDtype) -> None:
    identity = make_identity(dtype, dim=64)
    dataset, source, records = make_dataset(tmp_path, identity)
    path = data_file(dataset, records[0].key).url
    table = pq.read_table(path)
    halved = [[value // 2 if dtype == "int8" else value / 2 for value in v] for v in table["embedding"].to_pylist()]
    pq.write_table(table.set_column(5, table.field(5), pa.array(halved, table.field(5).type)), path)
    (found,) = problems(dataset, identity, source, records)
    assert f"{table.num_rows} vectors have not length 1" in found
    free = dataclasses.replace(identity, normalized=False)
    assert problems(dataset, free, source, records) == []


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_data_file_that_does_not_read(tmp_path: Path, content: bytes | None) -> None:
    identity = make_identity()
    dataset, source, records = make_dataset(tmp_path, identity)
    path = Path(data_file(dataset, records[1].key).url)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    (found,) = problems(dataset, identity, source, records)
    assert found.startswith("1: the data file does not read (ArrowInvalid): remove it")
    path.unlink()
    (found,) = problems(dataset, identity, source, records)
    assert found.startswith("1: the data file does not read (FileNotFoundError)")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"PAR1")])
def test_rejected_rows_that_are_gone(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    identity = make_identity()
    dataset, source, records = make_dataset(tmp_path, identity)
    damage(Path(rejected_file(dataset, records[0].key).url))
    found = problems(dataset, identity, source, records)
    assert "0: 0 rows are in rejected/, the snapshot says 1" in found
    assert "0: 9 documents and 0 rejected rows do not add up to 10 rows" in found
    assert "0: 1 rows of the source are neither embedded nor rejected, 0 are there twice" in found


def test_fragments_that_are_missing_or_too_many(tmp_path: Path) -> None:
    identity = make_identity()
    dataset, source, records = make_dataset(tmp_path, identity)
    assert problems(dataset, identity, source, [records[0], records[2]]) == [
        "1: the source has 10 rows for this fragment, which is missing"
    ]
    stale = dataclasses.replace(records[2], fragment=dataclasses.replace(records[2].fragment, part=3))
    assert problems(dataset, identity, source, [*records, stale]) == [
        "3: the source has no rows for this fragment any more"
    ]


def test_a_source_that_changed_is_noticed(tmp_path: Path) -> None:
    identity = make_identity()
    dataset, source, records = make_dataset(tmp_path, identity)
    path = Path(str(source.path))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[3].replace('"d3"', '"D3"'), *lines[4:]]))
    assert problems(dataset, identity, source, records) == [
        "0: the rows of the source are not those that were embedded (ids or row numbers differ)"
    ]
    path.write_text("".join(lines[:-1]))
    assert problems(dataset, identity, source, records) == [
        "2: the source has 4 rows here, the fragment accounts for 5"
    ]


def test_without_a_look_at_the_source(tmp_path: Path) -> None:
    identity = make_identity()
    dataset, source, records = make_dataset(tmp_path, identity)
    Path(str(source.path)).unlink()
    assert [problem for record in records for problem in verify_fragment(dataset, identity, record)] == []
    make_source(tmp_path)  # so that the folder is as before
    wrong = dataclasses.replace(records[0], chunks=records[0].chunks + 1)
    (found,) = verify_fragment(dataset, identity, wrong)
    assert found.key == records[0].key


@pytest.mark.parametrize(
    ("dtype", "least"), [("float32", 1 - 1e-6), ("float16", 1 - 1e-6), ("int8", 0.999), ("binary", 1.0)]
)
def test_the_worst_cosine(dtype: OutputDtype, least: float) -> None:
    values = unit_vectors(50, 64)
    identity = make_identity(dtype, dim=64, scale=calibrate_scale(values) if dtype == "int8" else None)
    stored = pa.table({"embedding": to_arrow(values, dtype, identity.scale)})

    def again(values_ND: np.ndarray[Any, np.dtype[np.float32]]) -> Vectors:
        return Vectors(values_ND, np.ones(len(values_ND), bool), 0)

    assert worst_cosine(stored, again(values), identity) >= least
    turned = values.copy()
    turned[17] = -turned[17]
    assert worst_cosine(stored, again(turned), identity) == pytest.approx(0.0 if dtype == "binary" else -1.0, abs=1e-2)
    assert worst_cosine(stored.slice(3, 10), again(values[3:13]), identity) >= least
    assert np.isfinite(worst_cosine(stored.slice(0, 0), again(values[:0]), identity))


SPARSE_FAULTS: list[tuple[str, Change, str]] = [
    ("order", replace("sparse_indices", lambda rows: [rows[0][::-1], *rows[1:]]), "do not ascend"),
    ("twice", replace("sparse_indices", lambda rows: [[rows[0][0]] * len(rows[0]), *rows[1:]]), "do not ascend"),
    ("range", replace("sparse_indices", lambda rows: [*rows[:-1], [*rows[-1][:-1], 100]]), "1 sparse indices are not"),
    ("length", replace("sparse_weights", lambda rows: [rows[0][:-1], *rows[1:]]), "another number of indices"),
    ("missing", replace("sparse_weights", lambda rows: [None, *rows[1:]]), r"1 sparse vectors are missing \(null\)"),
    ("zero", replace("sparse_weights", lambda rows: [[0.0, *rows[0][1:]], *rows[1:]]), "1 sparse weights are not"),
    ("nan", replace("sparse_weights", lambda rows: [[float("nan"), *rows[0][1:]], *rows[1:]]), "1 sparse weights are"),
]


@pytest.mark.parametrize(("change", "message"), [f[1:] for f in SPARSE_FAULTS], ids=[f[0] for f in SPARSE_FAULTS])
@pytest.mark.parametrize("dim", [0, 16])
def test_a_fault_in_a_sparse_vector_is_found(tmp_path: Path, dim: int, change: Change, message: str) -> None:
    identity = make_identity(dim=dim, sparse_dim=100)
    dataset, source, records = make_dataset(tmp_path, identity)
    assert problems(dataset, identity, source, records) == []
    path = data_file(dataset, records[1].key).url
    pq.write_table(change(pq.read_table(path)), path)
    found = problems(dataset, identity, source, records)
    assert any(pc.match_substring_regex(pa.scalar(line), message).as_py() for line in found), found


@pytest.mark.parametrize("dim", [0, 16])
def test_a_vector_without_entries_is_a_fault_where_it_is_all_there_is(tmp_path: Path, dim: int) -> None:
    identity = make_identity(dim=dim, sparse_dim=100)
    dataset, source, records = make_dataset(tmp_path, identity)
    path = data_file(dataset, records[0].key).url
    table = pq.read_table(path)
    for name in ("sparse_indices", "sparse_weights"):
        table = replace(name, lambda rows: [[], *rows[1:]])(table)
    pq.write_table(table, path)
    assert len(problems(dataset, identity, source, records)) == (0 if dim else 1)


def test_the_worst_sparse_cosine() -> None:
    stored = SparseVectors.concat([sparse_vectors(30, 100), SparseVectors.empty(1)])
    identity = make_identity(dim=0, sparse_dim=100)

    def worst(vectors: SparseVectors) -> float:
        again = Vectors(np.empty((31, 0), np.float32), np.ones(31, bool), 0, sparse=vectors)
        return worst_cosine(pa.table(stored.to_arrow()), again, identity)

    assert worst(stored) == pytest.approx(1.0)
    changed = dataclasses.replace(stored, weights_S=stored.weights_S * np.linspace(1, 2, len(stored.weights_S)))
    one, other = stored.dense(100).astype(float), changed.dense(100).astype(float)
    cosines = (one * other)[:-1].sum(1) / np.linalg.norm(one[:-1], axis=1) / np.linalg.norm(other[:-1], axis=1)
    assert worst(changed) == pytest.approx(cosines.min())
    assert worst(stored.take(np.arange(31)[::-1])) == pytest.approx(0.0)
