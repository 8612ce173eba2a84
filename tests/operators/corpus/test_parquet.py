"""Parquet: row groups, string types, damage."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.corpus.source import Source
from operators.corpus.units import plan_units
from tests.operators.corpus.reading_files import FUZZ, reasons, rows_of, source_file, texts


def parquet(path: Path, num_rows: int, rows_per_group: int, **changes: Any) -> pa.Table:
    table = pa.table(
        {"text": [f"document {i} " + "lorem " * 5 for i in range(num_rows)], "n": list(range(num_rows))}
        | {name: column for name, column in changes.items() if isinstance(column, pa.Array)}
    )
    pq.write_table(table, path, row_group_size=rows_per_group, compression="none", use_dictionary=False)
    return table


@pytest.mark.parametrize("rows_per_fragment", [1, 10, 35, 100, 1000])
def test_row_groups_cover_all_rows_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_fragment: int
) -> None:
    monkeypatch.setattr("operators.corpus.units.OPEN_ABOVE_BYTES", 0)
    table = parquet(tmp_path / "docs.parquet", 95, 10)
    source = Source(path=str(tmp_path), rows_per_fragment=rows_per_fragment)
    units = list(plan_units([source_file(tmp_path / "docs.parquet")], source, (), 0, {}))
    rows = [row for unit in units for row in rows_of(tmp_path / "docs.parquet", extents=unit.extents)]
    assert [row["source_row"] for row in rows] == list(range(95))
    assert texts(rows) == table["text"].to_pylist()
    assert rows == rows_of(tmp_path / "docs.parquet")
    assert len(units) == max(1, min(10, -(-95 // (-(-rows_per_fragment // 10) * 10))))
    assert sum(extent.share for unit in units for extent in unit.extents) == pytest.approx(1)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_every_string_type(tmp_path: Path, kind: pa.DataType) -> None:
    values = ["a", "é€😀", None, "x" * 100, "a"]
    table = pa.table({"text": pa.array(values).cast(kind), "id": pa.array(list("vwxyz")).cast(kind)})
    pq.write_table(table, tmp_path / "docs.parquet")
    rows = rows_of(tmp_path / "docs.parquet", keep=pa.schema([("id", kind)]), id="id")
    assert texts(rows) == ["a", "é€😀", "x" * 100, "a"]
    assert [row["doc_id"] for row in rows] == list("vwxyz")
    assert [row["id"] for row in rows] == table["id"].to_pylist()
    assert reasons(rows) == ["null_text"]


def test_invalid_utf8_in_parquet_costs_its_row(tmp_path: Path) -> None:
    binary = pa.array([b"a", b"\xff\xfe", None, b"d"], pa.binary())
    pq.write_table(pa.table({"text": binary.view(pa.string())}), tmp_path / "docs.parquet")
    rows = rows_of(tmp_path / "docs.parquet")
    assert [row["reason"] for row in rows] == [None, "invalid_utf8", "null_text", None]


def test_a_corrupt_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "docs.parquet"
    parquet(path, 30, 10)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    rows = rows_of(path)
    assert [row["source_row"] for row in rows] == list(range(30))
    assert [row["reason"] for row in rows] == [None] * 10 + ["unreadable_rows"] * 10 + [None] * 10


@pytest.mark.parametrize("cut", [0, 1, 8, 500, -1, -9])
def test_a_truncated_parquet_is_one_rejected_row(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "docs.parquet"
    parquet(path, 30, 10)
    path.write_bytes(path.read_bytes()[:cut])
    rows = rows_of(path)
    assert [(row["source_row"], row["reason"]) for row in rows] == [(0, "unreadable_file")]


@FUZZ
@given(place=st.floats(0, 1, exclude_max=True), damage=st.binary(min_size=1, max_size=8))
def test_damage_anywhere_in_a_parquet_never_raises(place: float, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docs.parquet"
        parquet(path, 40, 10)
        content = bytearray(path.read_bytes())
        start = int(place * len(content))
        content[start : start + len(damage)] = damage
        path.write_bytes(content)
        rows = rows_of(path)
    assert rows, "damage may cost rows but they are accounted for"


def test_parquet_without_rows_or_columns(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    with pq.ParquetWriter(tmp_path / "none.parquet", schema):
        pass
    assert pq.ParquetFile(tmp_path / "none.parquet").num_row_groups == 0
    assert rows_of(tmp_path / "empty.parquet") == rows_of(tmp_path / "none.parquet") == []
    pq.write_table(pa.table({"other": [1, 2, 3]}), tmp_path / "other.parquet")
    rows = rows_of(tmp_path / "other.parquet")
    assert [row["reason"] for row in rows] == ["missing_column"] * 3
    assert [row["source_row"] for row in rows] == [0, 1, 2]
