"""The look at the source's head: what is refused before anything runs, and what types kept columns get."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.corpus.inspect import inspect_source
from operators.corpus.source import Source
from operators.errors import InputError
from tests.operators.corpus.reading_files import source_file


def inspected(path: Path, *keep: str, **source: Any) -> pa.Schema:
    return inspect_source([source_file(path)], Source(path=str(path), **source), keep)


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_missing_columns_are_named_with_those_that_there_are(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "docs.jsonl", {"body": "t", "key": 1})
    with pytest.raises(InputError, match=r"set source.text to a column that exists: 'text'.*body, key"):
        inspected(path)
    with pytest.raises(InputError, match=r"set source.id .*'id'"):
        inspected(path, text="body", id="id")
    with pytest.raises(InputError, match=r"set output.keep .*'lang'"):
        inspected(path, "lang", text="body")
    with pytest.raises(InputError, match=r"take 'embedding' out of output.keep"):
        inspected(path, "embedding", text="body")


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"text": 5}, {}, "set source.text to a column of strings: 'text' .* int64"),
        ({"text": {"a": 1}}, {}, "set source.text .* struct"),
        ({"text": "t", "id": 1.5}, {"id": "id"}, "set source.id to a column of strings or integers: 'id' .* double"),
    ],
)
def test_columns_of_the_wrong_type_are_refused(
    tmp_path: Path, record: object, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        inspected(jsonl(tmp_path / "docs.jsonl", record), **options)


def test_strings_that_look_like_dates_are_strings(tmp_path: Path) -> None:
    records = [{"text": "2024-01-01", "id": "2024-01-01T00:00:00Z", "day": "2024-02-03"}] * 3
    schema = inspected(jsonl(tmp_path / "docs.jsonl", *records), "day", id="id")
    assert schema == pa.schema([("day", pa.string())])


def test_kept_types_of_jsonl(tmp_path: Path) -> None:
    records = [
        {"text": "t", "n": None, "f": 1, "s": "x", "b": True, "o": {"a": 1}, "mixed": 1, "null": None},
        {"text": "t", "n": 7, "f": 1.5, "s": "y", "b": False, "o": {"a": 2}, "mixed": "x", "null": None},
    ]
    path = tmp_path / "docs.jsonl"
    expected = [("n", pa.int64()), ("f", pa.float64()), ("s", pa.string()), ("b", pa.bool_())]
    expected += [("o", pa.string()), ("mixed", pa.string()), ("null", pa.string())]
    names = [name for name, _ in expected]
    assert inspected(jsonl(path, *records), *names) == pa.schema(expected)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"{broken\n\xff\n")
    assert inspected(path, *names) == pa.schema(expected)
    packed = tmp_path / "docs.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert inspected(packed, *names) == pa.schema(expected)


def test_a_head_longer_than_what_is_read(tmp_path: Path) -> None:
    records = [{"text": "lorem ipsum " * 100, "n": i} for i in range(2000)]
    assert inspected(jsonl(tmp_path / "docs.jsonl", *records), "n") == pa.schema([("n", pa.int64())])
    path = tmp_path / "docs.csv"
    path.write_text("n,text\n" + "".join(f'{i},"two\nlines {"x" * 500}\n"\n' for i in range(4100)))
    assert path.stat().st_size > 2 << 20
    for shift in range(5):  # wherever the head ends in a quoted field
        shifted = tmp_path / f"{shift}.csv"
        shifted.write_text("n,text\n" + f'0,"{"y" * (101 * shift)}"\n' + path.read_text().split("\n", 1)[1])
        assert inspected(shifted, "n") == pa.schema([("n", pa.int64())]), shift


def test_kept_types_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "docs.csv"
    path.write_bytes(b"\xef\xbb\xbfid,text,n,f,b,day\n1,2,3,1.5,true,2024-01-01\n2,3,,2,false,\n")
    schema = inspected(path, "id", "n", "f", "b", "day", id="id")
    assert schema == pa.schema(
        [("id", pa.string()), ("n", pa.int64()), ("f", pa.float64()), ("b", pa.bool_()), ("day", pa.string())]
    )


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_dictionary_columns_count_as_their_values(tmp_path: Path, kind: pa.DataType) -> None:
    ids = pa.array([1, 2]).cast(kind).dictionary_encode()
    text = pa.array(["a", "b"]).dictionary_encode()
    pq.write_table(pa.table({"id": ids, "body": text}), tmp_path / "docs.parquet")
    stored = pq.read_schema(tmp_path / "docs.parquet")
    assert inspected(tmp_path / "docs.parquet", "id", "body", id="id", text="body") == stored.remove_metadata()
    assert pa.types.is_dictionary(stored.field("body").type)


def test_broken_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 truncated")
    (tmp_path / "b.jsonl").write_bytes(b"")
    jsonl(tmp_path / "c.jsonl", {"text": "t", "n": 1})
    files = [source_file(path) for path in sorted(tmp_path.iterdir())]
    source = Source(path=str(tmp_path))
    assert inspect_source(files, source, ("n",)) == pa.schema([("n", pa.int64())])
    assert inspect_source(files[:2], source, ("n",)) == pa.schema([("n", pa.string())])


def test_text_files_have_three_columns(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# hello")
    assert inspected(tmp_path / "a.md", "name", id="path").names == ["name"]
    with pytest.raises(InputError, match="path, name, text"):
        inspected(tmp_path / "a.md", id="id")
