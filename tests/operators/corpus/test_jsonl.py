"""JSON lines, cut anywhere, against Python's own reader."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.corpus.formats import Pace
from operators.corpus.formats.jsonl import line_blocks
from operators.corpus.source import Source
from operators.corpus.units import plan_units
from tests.operators.corpus.reading_files import FUZZ, good, jsonl, reasons, rows_of, source_file, texts, written

LINE_BYTES = st.one_of(st.sampled_from([b"", b"\r", b"a", "é€😀".encode(), b"x" * 40]), st.binary(max_size=12))


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
