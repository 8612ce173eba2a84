"""Every format against an independent reader: JSON lines, CSV and TSV, Parquet, compressed streams."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.corpus.formats import Pace
from operators.corpus.formats.jsonl import line_blocks
from operators.corpus.source import Source
from operators.corpus.units import plan_units
from operators.errors import InputError
from operators.fragment import Extent, SourceFile
from tests.operators.corpus.reading_files import good, reasons, rows_of, source_file, texts

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
LINE_BYTES = st.one_of(st.sampled_from([b"", b"\r", b"a", "é€😀".encode(), b"x" * 40]), st.binary(max_size=12))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- line_blocks -------------------------------------------------------------------------------------------------


@FUZZ
@given(
    lines=st.lists(LINE_BYTES.map(lambda line: line.replace(b"\n", b"")), max_size=12),
    is_ended=st.booleans(),
    block_bytes=st.integers(1, 60),
    cuts=st.sets(st.integers(1, 200), max_size=5),
)
def test_byte_ranges_hold_every_line_once_whatever_the_blocks(
    lines: list[bytes], is_ended: bool, block_bytes: int, cuts: set[int]
) -> None:
    content = b"\n".join(lines) + (b"\n" if is_ended and lines else b"")
    bounds = [0, *sorted(cut for cut in cuts if cut < len(content))]
    found: list[tuple[int, bytes]] = []
    for start, end in zip(bounds, [*bounds[1:], -1], strict=True):
        for offset, block in line_blocks(io.BytesIO(content), start, end, block_bytes):
            assert content[offset : offset + len(block)] == block
            for line in block.splitlines(keepends=True) if b"\r" not in block else _keep_newlines(block):
                found.append((offset, line))
                offset += len(line)
    assert b"".join(line for _, line in found) == content
    expected = [line for line in _keep_newlines(content) if line]
    assert [line for _, line in found] == expected
    starts = np.cumsum([0, *map(len, expected)])[:-1].tolist()
    assert [offset for offset, _ in found] == starts


def _keep_newlines(content: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in content.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]


def test_every_two_way_cut_of_a_small_file() -> None:
    content = "ab\r\n\né\nlonger than a block\n\nlast".encode()
    expected = _keep_newlines(content)
    for block_bytes in (1, 2, 3, 7, 100):
        for cut in range(1, len(content)):
            blocks = [
                block
                for start, end in ((0, cut), (cut, -1))
                for _, block in line_blocks(io.BytesIO(content), start, end, block_bytes)
            ]
            assert [line for block in blocks for line in _keep_newlines(block)] == expected, (block_bytes, cut)


# --- JSON lines --------------------------------------------------------------------------------------------------


def jsonl(records: list[Any], newline: str = "\n", is_ended: bool = True) -> bytes:
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    return (newline.join(lines) + (newline if is_ended else "")).encode()


@FUZZ
@given(
    docs=st.lists(st.one_of(st.none(), st.text(max_size=30)), min_size=1, max_size=20),
    newline=st.sampled_from(["\n", "\r\n"]),
    is_ended=st.booleans(),
    share=st.floats(0.05, 1),
)
def test_a_split_jsonl_has_the_unsplit_files_ids_and_texts(
    docs: list[str | None], newline: str, is_ended: bool, share: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # None stands for a blank line: no row, but it counts in the numbers of those after it.
        records = ["" if doc is None else {"text": "x" + doc} for doc in docs]
        path = written(Path(folder) / "docs.jsonl", jsonl(records, newline, is_ended))
        expected = [(f"{path}#{i}", i, "x" + doc) for i, doc in enumerate(docs) if doc is not None]
        # Source refuses ranges below 1 KiB, for users; cutting must hold at any size.
        source = Source(path=str(path)).model_copy(
            update={"bytes_per_fragment": max(1, int(share * path.stat().st_size))}
        )
        units = list(plan_units([source_file(path)], source, (), 0, {}))
        found = [row for unit in units for row in rows_of(path, extents=unit.extents, pace=Pace(block_bytes=23))]
    assert [(row["doc_id"], row["source_row"], row["text"]) for row in found] == expected
    assert not reasons(found)


def test_with_an_id_column_the_row_number_is_where_the_line_begins(tmp_path: Path) -> None:
    records = [{"id": i, "text": "é" * (i % 50) + "x"} for i in range(400)]
    path = written(tmp_path / "docs.jsonl", jsonl(records))
    source = Source(path=str(path), id="id", bytes_per_fragment=1024)
    units = list(plan_units([source_file(path)], source, (), 0, {}))
    assert len(units) == -(-path.stat().st_size // 1024)
    found = [row for unit in units for row in rows_of(path, extents=unit.extents, id="id")]
    assert [row["doc_id"] for row in found] == [str(i) for i in range(400)]
    with open(path, "rb") as stream:
        for row in found:
            stream.seek(row["source_row"])
            assert json.loads(stream.readline())["text"] == row["text"]


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=6),
        st.sampled_from(["2024-01-01", "1", 0, -1, 2**63, 2**64]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)),
    max_leaves=4,
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5), JSON_VALUES),
        "text": st.one_of(st.text(max_size=9), JSON_VALUES),
        "count": st.one_of(st.integers(), JSON_VALUES),
        "score": st.one_of(st.floats(), st.integers(), JSON_VALUES),
        "flag": st.one_of(st.booleans(), JSON_VALUES),
        "tag": JSON_VALUES,
        "ignored": JSON_VALUES,
    },
)
ODD_LINES = [
    '{"text": "a", "text": "b"}',
    '{"text": "a", "ignored": 1, "ignored": 2}',
    '{"text": "a", "ignored": ' + "[" * 2000 + "]" * 2000 + "}",
    '{"text": "a"}{"text": "b"}',
    '{"text": "a"} {"text": "b"}',
    '{"text": "lone \\ud800 surrogate"}',
    '{"text": "nul \\u0000 inside"}',
    '{"text": "a", "ignored": 1e400}',
    '{"text": "a", "score": 1e5, "count": 1e2}',
    '  {"text": "a"}  ',
    "null",
    "[1]",
    '"text"',
    "{}",
    "",
    "{",
]
KEEP = pa.schema([("count", pa.int64()), ("score", pa.float64()), ("flag", pa.bool_()), ("tag", pa.string())])


def comparable(rows: list[dict[str, Any]]) -> list[str]:
    return [repr({**row, "source_row": None, "source_path": None}) for row in rows]


@FUZZ
@given(
    records=st.lists(st.one_of(RECORDS, st.sampled_from(ODD_LINES)), min_size=1, max_size=8),
    columns=st.sampled_from([{"id": "id"}, {"id": "text"}, {"id": "id", "text": "{text}/{tag}"}, {"id": "count"}]),
)
def test_a_row_never_depends_on_the_other_lines_of_its_block(
    records: list[dict[str, Any] | str], columns: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        together = written(Path(folder) / "together.jsonl", jsonl(records))
        # The odd line takes the whole block to the line-by-line path.
        careful = written(Path(folder) / "careful.jsonl", jsonl([*records, "{bad"]))
        alone = []
        for number, record in enumerate(records):
            path = written(Path(folder) / f"{number}.jsonl", jsonl([record]))
            alone += comparable(rows_of(path, KEEP, **columns))
        rows = rows_of(together, KEEP, **columns)
        assert comparable(rows) == alone
        assert comparable(rows_of(careful, KEEP, **columns))[:-1] == alone


def test_two_objects_on_a_line_do_not_make_up_for_a_blank_one(tmp_path: Path) -> None:
    content = b'{"text": "a"}{"text": "b"}\n\n{"text":\n"c"}{"text": "d"}\n'
    rows = rows_of(written(tmp_path / "docs.jsonl", content))
    assert texts(rows) == []
    assert [(row["source_row"], row["reason"]) for row in rows] == [(i, "malformed_json") for i in (0, 2, 3)]


def test_invalid_utf8_costs_its_line_wherever_in_it(tmp_path: Path) -> None:
    lines = [b'{"text": "a"}', b'{"text": "b\xff"}', b'{"text": "c", "ignored": "\xfe"}', b'{"text": "d"}']
    rows = rows_of(written(tmp_path / "docs.jsonl", b"\n".join(lines)))
    assert [row["reason"] for row in rows] == [None, "invalid_utf8", "invalid_utf8", None]
    assert [row["doc_id"].rsplit("#", 1)[1] for row in rows] == ["0", "1", "2", "3"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = written(tmp_path / "docs.jsonl", b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')
    assert texts(rows_of(path)) == ["a", "b"]


def test_integer_ids_stay_exact(tmp_path: Path) -> None:
    ids = [0, -1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 + 1, 10**30, "x", "007"]
    path = written(tmp_path / "docs.jsonl", jsonl([{"id": i, "text": "t"} for i in ids]))
    assert [row["doc_id"] for row in good(rows_of(path, id="id"))] == [str(i) for i in ids]


@pytest.mark.parametrize("bad", [1.5, True, [1], {"a": 1}])
def test_an_id_of_another_type_is_rejected(tmp_path: Path, bad: object) -> None:
    path = written(tmp_path / "docs.jsonl", jsonl([{"id": "a", "text": "t"}, {"id": bad, "text": "t"}]))
    assert reasons(rows_of(path, id="id")) == ["wrong_type"]


def test_kept_values_of_another_type_become_null(tmp_path: Path) -> None:
    records = [
        {"text": "t", "count": 1, "score": 1.5, "flag": True, "tag": "x"},
        {"text": "t", "count": 1.5, "score": "1", "flag": 1, "tag": {"a": [1, None]}},
        {"text": "t", "count": 2**70, "score": 2**60 + 1, "flag": None, "tag": 5},
        {"text": "t"},
    ]
    rows = good(rows_of(written(tmp_path / "docs.jsonl", jsonl(records)), KEEP))
    assert [tuple(row[name] for name in KEEP.names) for row in rows] == [
        (1, 1.5, True, "x"),
        (None, None, None, '{"a":[1,null]}'),
        (None, float(2**60), None, "5"),
        (None, None, None, None),
    ]


# --- Parquet -----------------------------------------------------------------------------------------------------


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


# --- CSV and TSV -------------------------------------------------------------------------------------------------

FIELDS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)


@FUZZ
@given(records=st.lists(st.tuples(FIELDS, FIELDS), max_size=8), newline=st.sampled_from(["\r\n", "\n"]))
def test_csv_gives_back_what_was_written(records: list[tuple[str, str]], newline: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docs.csv"
        with open(path, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator=newline, quoting=csv.QUOTE_ALL)
            writer.writerow(["name", "text"])
            writer.writerows(records)
        rows = rows_of(path, keep=pa.schema([("name", pa.string())]), pace=Pace(batch_rows=3))
    assert [(row["name"], row["text"]) for row in rows] == records
    assert [row["source_row"] for row in rows] == list(range(len(records)))
    assert [row["reason"] for row in rows] == [None if text.strip() else "blank_text" for _, text in records]


def test_bad_csv_records_are_rejected_one_by_one(tmp_path: Path) -> None:
    content = (
        b'\xef\xbb\xbf\r\nid,text\r\n1,one\r\n2,"two\r\nlines"\r\n3,three,more\r\n4,"fo"ur\r\n\r\n'
        b'5,f\xffve\r\n6,"s ""quoted"" ix"\r\n7\r\n8,nul \x00 inside\r\n9,"never closed\r\n'
    )
    rows = rows_of(written(tmp_path / "docs.csv", content), id="id")
    assert {row["doc_id"]: row["text"] for row in good(rows)} == {
        "1": "one",
        "2": "two\r\nlines",
        "6": 's "quoted" ix',
        "8": "nul \x00 inside",
    }
    assert reasons(rows) == ["malformed_csv", "malformed_csv", "invalid_utf8", "malformed_csv", "malformed_csv"]
    assert [row["source_row"] for row in rows] == list(range(9))


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    path = written(tmp_path / "docs.tsv", b'id\ttext\n1\t"a\n2\tb"c"\n3\td, e\n4\tx\ty\n')
    rows = rows_of(path, id="id")
    assert texts(rows) == ['"a', 'b"c"', "d, e"]
    assert reasons(rows) == ["malformed_csv"]


def test_a_csv_without_content_has_no_rows(tmp_path: Path) -> None:
    assert rows_of(written(tmp_path / "a.csv", b"")) == []
    assert rows_of(written(tmp_path / "b.csv", b"\n\n")) == []
    assert rows_of(written(tmp_path / "c.csv", b"id,text\n")) == []
    assert reasons(rows_of(written(tmp_path / "d.csv", b"id,body\n1,x\n"))) == ["missing_column"]


# --- text files --------------------------------------------------------------------------------------------------


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = written(tmp_path / 'it\'s a "file" 😀.md', "\ufeff# Title\r\n\r\né".encode())
    rows = rows_of(path, keep=pa.schema([("name", pa.string())]), id="path")
    assert [(row["doc_id"], row["name"], row["text"]) for row in rows] == [(str(path), path.name, "# Title\r\n\r\né")]
    assert reasons(rows_of(written(tmp_path / "bad.txt", b"a\xff"))) == ["invalid_utf8"]
    assert reasons(rows_of(written(tmp_path / "empty.txt", b""))) == ["blank_text"]
    assert texts(rows_of(written(tmp_path / "z.txt.gz", gzip.compress(b"hello")))) == ["hello"]


# --- compressed streams ------------------------------------------------------------------------------------------


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


LINES = [json.dumps({"text": f"{i} " + np.random.default_rng(i).bytes(60).hex()}) for i in range(2000)]


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
@pytest.mark.parametrize("num_members", [1, 2, 7])
def test_members_are_read_one_after_the_other(tmp_path: Path, ending: str, compress: Any, num_members: int) -> None:
    content = "\n".join(LINES).encode()
    size = -(-len(content) // num_members)
    members = [compress(content[start : start + size]) for start in range(0, len(content), size)]
    rows = rows_of(written(tmp_path / f"docs.jsonl{ending}", b"".join(members)))
    assert texts(rows) == [json.loads(line)["text"] for line in LINES]


def readable_part(ending: str, content: bytes) -> bytes:
    """What another decoder makes of a truncated stream."""
    decoder = zlib.decompressobj(31) if ending == ".gz" else zstandard.ZstdDecompressor().decompressobj()
    return decoder.decompress(content)


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_rows_before_the_cut_survive(tmp_path: Path, ending: str, compress: Any, kind: str, share: float) -> None:
    if kind == "jsonl":
        content = "\n".join(LINES).encode()
    else:
        content = ("text\n" + "\n".join(json.loads(line)["text"] for line in LINES)).encode()
    whole = compress(content)
    cut = whole[: int(share * len(whole))]
    rows = rows_of(written(tmp_path / f"docs.{kind}{ending}", cut))
    expected = [json.loads(line)["text"] for line in LINES]
    assert texts(rows) == expected[: len(rows) - 1]
    # Up to 4096 bytes before the cut are lost with the read that fails, and CSV is taken 8192 bytes at a time.
    sure = readable_part(ending, cut)[: -(4096 + 8192)].count(b"\n") - 1
    assert len(rows) > sure, (len(rows), sure)
    assert sure > 100 or share < 0.5
    assert reasons(rows) == ["unreadable_file"]
    assert rows[-1]["source_row"] == len(rows) - 1


def test_garbage_is_no_stream(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.csv.zst", "c.txt.gz"):
        assert reasons(rows_of(written(tmp_path / name, b"this is not compressed at all"))) == ["unreadable_file"]


# --- whose fault -------------------------------------------------------------------------------------------------


def test_a_file_that_vanished_stops_the_run(tmp_path: Path) -> None:
    gone = Extent(SourceFile(str(tmp_path / "gone.jsonl"), 10, "1"))
    with pytest.raises(InputError, match=r"^run again: .*gone.jsonl"):
        rows_of(tmp_path / "gone.jsonl", extents=[gone])
