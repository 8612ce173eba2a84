"""CSV, TSV, text files and compressed streams against an independent reader."""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from operators.corpus.formats import Pace
from operators.errors import InputError
from operators.work.fragment import Extent, SourceFile
from tests.operators.corpus.reading_files import FUZZ, good, reasons, rows_of, texts, written

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


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = written(tmp_path / 'it\'s a "file" 😀.md', "\ufeff# Title\r\n\r\né".encode())
    rows = rows_of(path, keep=pa.schema([("name", pa.string())]), id="path")
    assert [(row["doc_id"], row["name"], row["text"]) for row in rows] == [(str(path), path.name, "# Title\r\n\r\né")]
    assert reasons(rows_of(written(tmp_path / "bad.txt", b"a\xff"))) == ["invalid_utf8"]
    assert reasons(rows_of(written(tmp_path / "empty.txt", b""))) == ["blank_text"]
    assert texts(rows_of(written(tmp_path / "z.txt.gz", gzip.compress(b"hello")))) == ["hello"]


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


def test_a_file_that_vanished_stops_the_run(tmp_path: Path) -> None:
    gone = Extent(SourceFile(str(tmp_path / "gone.jsonl"), 10, "1"))
    with pytest.raises(InputError, match=r"^run again: .*gone.jsonl"):
        rows_of(tmp_path / "gone.jsonl", extents=[gone])
