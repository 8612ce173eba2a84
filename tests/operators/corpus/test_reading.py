"""Cutting a unit into fragments: the same cuts every time, every row once, resumable anywhere."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.corpus.reading import empty_rows, read_fragments, read_sample
from operators.corpus.source import Source
from operators.work.fragment import Extent, FragmentBatch, Unit
from tests.operators.corpus.reading_files import NO_KEEP, source_file

FUZZ = settings(max_examples=40, deadline=None)
DOCS = st.lists(st.one_of(st.none(), st.integers(0, 300)), max_size=30)  # text bytes; None = a null text


def write_docs(folder: Path, docs: list[int | None], name: str = "docs.jsonl") -> Unit:
    path = folder / name
    lines = [json.dumps({"text": None if size is None else "x" * size, "n": i}) for i, size in enumerate(docs)]
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return Unit.of((Extent(source_file(path)),), "test")


def make_source(max_rows: int, max_bytes: int, **settings: Any) -> Source:
    source = Source(path="unused", rows_per_fragment=max_rows, **settings)
    return source.model_copy(update={"bytes_per_fragment": max_bytes})  # Source refuses less than 1 KiB, for users


def expected_cuts(docs: list[int | None], max_rows: int, max_bytes: int) -> list[list[int]]:
    """Row numbers of each fragment by the plain rule: it ends with the row that reaches either limit."""
    fragments: list[list[int]] = [[]]
    num_bytes = 0
    for row, size in enumerate(docs):
        if len(fragments[-1]) >= max_rows or num_bytes >= max_bytes:
            fragments.append([])
            num_bytes = 0
        fragments[-1].append(row)
        num_bytes += size or 0
    return fragments


def row_numbers(batch: FragmentBatch) -> list[int]:
    return sorted(batch.table["source_row"].to_pylist() + batch.rejected["source_row"].to_pylist())


@FUZZ
@given(docs=DOCS, max_rows=st.integers(1, 12), max_bytes=st.integers(1, 900), skip=st.sets(st.integers(0, 8)))
def test_fragments_end_where_a_limit_is_reached(
    docs: list[int | None], max_rows: int, max_bytes: int, skip: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unit = write_docs(Path(folder), docs)
        source = make_source(max_rows, max_bytes)
        batches = list(read_fragments(unit, source, NO_KEEP))
        rest = list(read_fragments(unit, source, NO_KEEP, skip_parts=skip))
    assert [row_numbers(batch) for batch in batches] == expected_cuts(docs, max_rows, max_bytes)
    assert [batch.fragment.part for batch in batches] == list(range(len(batches)))
    assert [batch.fragment.last for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert [batch.counts.rows for batch in batches] == [len(row_numbers(batch)) for batch in batches]
    assert [batch.counts.rejected for batch in batches] == [batch.rejected.num_rows for batch in batches]

    kept = [batch for batch in batches if batch.fragment.part not in skip]
    assert [(b.fragment, b.ids_digest, b.table, b.rejected) for b in rest] == [
        (b.fragment, b.ids_digest, b.table, b.rejected) for b in kept
    ]


def test_an_empty_source_is_one_empty_last_fragment(tmp_path: Path) -> None:
    keep = pa.schema([("n", pa.int64())])
    (batch,) = read_fragments(write_docs(tmp_path, []), make_source(5, 1000), keep)
    assert batch.fragment.last
    assert batch.fragment.part == 0
    assert batch.table.schema == empty_rows(keep).schema
    assert (batch.table.num_rows, batch.rejected.num_rows, batch.counts.rows) == (0, 0, 0)


def test_a_compressed_stream_is_cut_like_the_plain_file(tmp_path: Path) -> None:
    docs: list[int | None] = [17 * i % 251 for i in range(500)]
    plain = write_docs(tmp_path, docs)
    path = tmp_path / "docs.jsonl.gz"
    path.write_bytes(gzip.compress((tmp_path / "docs.jsonl").read_bytes()))
    packed = Unit.of((Extent(source_file(path)),), "test")
    source = make_source(64, 4000)
    cuts = [row_numbers(batch) for batch in read_fragments(packed, source, NO_KEEP)]
    assert cuts == [row_numbers(batch) for batch in read_fragments(plain, source, NO_KEEP)]


def test_a_unit_of_many_files_keeps_their_order_and_its_broken_ones(tmp_path: Path) -> None:
    extents = []
    for number in range(6):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(b"\xff" if number == 3 else f"file {number}".encode())
        extents.append(Extent(source_file(path)))
    unit = Unit.of(tuple(extents), "test")
    batches = list(read_fragments(unit, make_source(4, 1000, id="name"), NO_KEEP))
    assert [batch.table["doc_id"].to_pylist() for batch in batches] == [["0.txt", "1.txt", "2.txt"], ["4.txt", "5.txt"]]
    assert [batch.rejected["source_path"].to_pylist() for batch in batches] == [[str(tmp_path / "3.txt")], []]


def test_duplicates_are_rejected_at_their_places_and_not_twice(tmp_path: Path) -> None:
    docs: list[int | None] = [5, 5, None, 5, 5, 5, 5]
    unit = write_docs(tmp_path, docs)
    batches = list(
        read_fragments(unit, make_source(3, 1000), NO_KEEP, duplicate_positions=np.array([1, 2, 6], np.int64))
    )
    rejected = [row for batch in batches for row in batch.rejected.to_pylist()]
    assert [(row["source_row"], row["reason"]) for row in rejected] == [
        (1, "duplicate_id"),
        (2, "null_text"),
        (6, "duplicate_id"),
    ]
    assert [row for batch in batches for row in batch.table["source_row"].to_pylist()] == [0, 3, 4, 5]


def test_the_digest_names_ids_rows_and_order(tmp_path: Path) -> None:
    lines = [{"id": i, "text": f"text {i}"} for i in ("a", "b", "ab", "")]
    path = tmp_path / "docs.jsonl"

    def digest(changed: list[dict[str, str]], to: Path = path) -> str:
        to.write_text("".join(json.dumps(line) + "\n" for line in changed))
        unit = Unit.of((Extent(source_file(to)),), "test")
        (batch,) = read_fragments(unit, make_source(100, 10_000, id="id"), NO_KEEP)
        return batch.ids_digest

    base = digest(lines)
    assert digest(lines) == base
    assert digest([{**line, "text": "other"} for line in lines]) == base
    others = [
        digest([lines[1], lines[0], *lines[2:]]),
        digest(lines[:-1]),
        digest([*lines, lines[0]]),
        digest([{**lines[0], "id": "A"}, *lines[1:]]),
        # The same letters, parted elsewhere
        digest([{"id": "aa", "text": ""}, {"id": "bb", "text": ""}, {"id": "", "text": ""}, {"id": "", "text": ""}]),
        digest([*lines[:3], {"text": "no id at all"}]),
        digest(lines, tmp_path / "other.jsonl"),
    ]
    assert len({base, *others}) == 1 + len(others)


@FUZZ
@given(docs=st.lists(st.integers(1, 3000), min_size=1, max_size=60), rows=st.integers(1, 80))
def test_a_sample_is_a_prefix_and_says_how_much_it_read(docs: list[int], rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unit = write_docs(Path(folder), [*docs])
        batch, num_bytes = read_sample(unit, make_source(100, 1 << 20), NO_KEEP, rows)
    taken = row_numbers(batch)
    assert taken == list(range(len(taken)))
    assert len(taken) >= min(rows, len(docs))
    assert batch.fragment.last == (len(taken) == len(docs))
    assert num_bytes == unit.size_bytes if batch.fragment.last else sum(docs[: len(taken)]) <= num_bytes
    assert dataclasses.replace(batch.counts, seconds={}).rows == len(taken)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_fragments_share_the_bytes_of_their_unit_by_their_rows(tmp_path: Path, ending: str) -> None:
    draw = random.Random(5)
    rows = [{"text": draw.randbytes(150).hex()} for _ in range(1000)]
    path = tmp_path / f"docs.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    else:
        lines = ["text\n" if ending == "csv" else ""]
        lines += [row["text"] + "\n" if ending == "csv" else json.dumps(row) + "\n" for row in rows]
        data = "".join(lines).encode()
        path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    unit = Unit.of((Extent(source_file(path)),), "")
    source = Source(path=str(tmp_path), rows_per_fragment=130)
    batches = list(read_fragments(unit, source, pa.schema([])))
    shares = [batch.counts.source_bytes / unit.size_bytes for batch in batches]
    assert sum(shares) == pytest.approx(1, abs=0.02)
    assert shares == pytest.approx([batch.counts.rows / 1000 for batch in batches], abs=0.02)
