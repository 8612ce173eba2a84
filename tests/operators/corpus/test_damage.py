"""Damaged files against Python's gzip and csv: what can be read is read, and a loss of unknown size is counted."""

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
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.corpus.formats import Pace
from operators.corpus.reading import read_fragments
from operators.corpus.source import Source
from operators.work.fragment import Counts, Extent, Unit
from tests.operators.corpus.reading_files import NO_KEEP, good, reasons, rows_of, source_file, texts, written

DAMAGED = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))


def _documents(seed: int, count: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [f"{number} " + bytes(draw.integers(97, 123, draw.integers(1, 60))).decode() for number in range(count)]


def _lines(documents: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in documents)


def _decodable(content: bytes) -> bytes:
    """What of a stream of one member decodes, taken byte by byte."""
    member, given_so_far = zlib.decompressobj(wbits=31), b""
    for position in range(len(content)):
        try:
            given_so_far += member.decompress(content[position : position + 1])
        except zlib.error:
            break
    return given_so_far


@DAMAGED
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 60),
    members=st.integers(1, 3),
    damage=st.sampled_from(["none", "cut", "flip", "zeros", "rubbish", "zeros between"]),
    where=st.floats(0, 1, exclude_max=True),
    size=st.integers(1, 700),
)
def test_a_gzip_stream_is_read_as_far_as_python_reads_it(
    seed: int, count: int, members: int, damage: str, where: float, size: int
) -> None:
    documents = _documents(seed, count)
    if damage in ("cut", "flip"):
        members = 1
    pieces = [_lines(list(part)) for part in np.array_split(np.array(documents, object), members)]
    content = (b"\0" * size if damage == "zeros between" else b"").join(gzip.compress(piece) for piece in pieces)
    place = int(where * len(content))
    if damage == "cut":
        content = content[: max(place, 1)]
    elif damage == "flip":
        content = content[:place] + bytes([content[place] ^ (1 + seed % 255)]) + content[place + 1 :]
    elif damage != "none":
        content += (b"\0" if damage.startswith("zeros") else b"rubbish") * size
    pace = Pace()
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(written(Path(folder) / "docs.jsonl.gz", content), pace=pace)
    try:
        whole = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        assert reasons(rows)[-1] == "unreadable_file"
        assert pace.unreadable_files == 1
        if damage == "cut":
            assert texts(rows) == documents[: _decodable(content).count(b"\n")]
        elif damage == "rubbish":
            assert texts(rows) == documents
        return
    assert pace.unreadable_files == 0
    assert pace.lost_bytes == 0
    assert len(rows) == whole.count(b"\n")
    if whole == _lines(documents):
        assert texts(rows) == documents


_SOUP = st.lists(st.sampled_from(['"', ",", "\n", "\r\n", "a", "b c", "é", '""', '"x"', '"y\nz"']), max_size=40)


@DAMAGED
@given(soup=_SOUP, is_compressed=st.booleans())
def test_a_csv_of_any_characters_is_read_as_python_reads_it(soup: list[str], is_compressed: bool) -> None:
    content = "id,text\n" + "".join(soup)
    expected: list[list[str] | None] = []
    reader, swallowed, before = csv.reader(io.StringIO(content, newline=""), strict=True), False, 1
    next(reader)
    while True:
        try:
            record = next(reader)
            bad = bool(record) and len(record) != 2
            expected += [None if bad else record] if record else []
        except csv.Error:
            bad = True
            expected.append(None)
        except StopIteration:
            break
        swallowed |= bad and reader.line_num - before > 1
        before = reader.line_num
    pace = Pace()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("docs.csv.gz" if is_compressed else "docs.csv")
        rows = rows_of(written(path, gzip.compress(content.encode()) if is_compressed else content.encode()), pace=pace)
    assert [None if row["reason"] == "malformed_csv" else row["text"] for row in rows] == [
        None if record is None else record[1] for record in expected
    ]
    assert (pace.lost_bytes > 0) == swallowed


def _counts(path: Path, **source: Any) -> list[Counts]:
    unit = Unit.of((Extent(source_file(path)),), "test")
    return [batch.counts for batch in read_fragments(unit, Source(path=str(path), **source), NO_KEEP)]


def test_a_cut_gzip_file_is_counted_once_among_its_fragments(tmp_path: Path) -> None:
    content = gzip.compress(_lines(_documents(1, 3000)))
    path = written(tmp_path / "docs.jsonl.gz", content[: len(content) // 2])
    counts = _counts(path, rows_per_fragment=500)
    assert len(counts) > 2
    assert sum(count.unreadable_files for count in counts) == 1
    assert sum(count.rejected for count in counts) == 1


@pytest.mark.parametrize("rows_per_fragment", [7, 5000])
def test_an_open_quote_tells_how_much_it_took(tmp_path: Path, rows_per_fragment: int) -> None:
    records = [f"{number},text of {number}\n" for number in range(100)]
    taken = "".join(records[51:])
    records[50] = '50,"text of 50\n'
    path = written(tmp_path / "docs.csv", ("id,text\n" + "".join(records)).encode())
    assert len(good(rows_of(path))) == 50
    counts = _counts(path, rows_per_fragment=rows_per_fragment)
    assert sum(count.lost_bytes for count in counts) == len(taken)
    assert sum(count.rejected for count in counts) == 1
