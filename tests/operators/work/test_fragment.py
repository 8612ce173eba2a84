"""The records that flow through a job, and how a fragment travels."""

from __future__ import annotations

import dataclasses
import json

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.work.fragment import (
    REJECTED_SCHEMA,
    Counts,
    Extent,
    Fragment,
    FragmentBatch,
    SourceFile,
    Unit,
    fragment_from_dict,
    from_row,
    to_row,
    unit_from_dict,
)

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
FILES = st.builds(SourceFile, path=TEXT, size=st.integers(0, 2**50), version=TEXT)
EXTENTS = st.builds(
    Extent,
    file=FILES,
    start=st.integers(0, 2**40),
    end=st.integers(-1, 2**40),
    first_row=st.integers(-1, 2**40),
    share=st.floats(0, 1),
)
UNITS = st.builds(lambda extents, reading: Unit.of(tuple(extents), reading), st.lists(EXTENTS, max_size=4), TEXT)
FRAGMENTS = st.builds(Fragment, unit=UNITS, part=st.integers(0, 99999), last=st.booleans())


def make_batch(fragment: Fragment, texts: list[str]) -> FragmentBatch:
    rejected = pa.Table.from_pylist(
        [{"doc_id": None, "source_path": "p", "source_row": 3, "reason": "r", "message": "m"}], REJECTED_SCHEMA
    )
    counts = Counts(rows=len(texts) + 1, rejected=1, seconds={"read": 0.5}, lengths=(1, 2, 3))
    return FragmentBatch(fragment, pa.table({"text": pa.array(texts, pa.string())}), rejected, counts, "digest")


@settings(deadline=None)
@given(fragment=FRAGMENTS, texts=st.lists(TEXT, max_size=5), is_written=st.booleans())
def test_a_fragment_travels_as_one_row(fragment: Fragment, texts: list[str], is_written: bool) -> None:
    batch = dataclasses.replace(make_batch(fragment, texts), is_written=is_written)
    row = to_row(batch)
    assert row.num_rows == 1
    assert row["key"][0].as_py() == fragment.key
    assert from_row(row) == batch
    # Ray may slice, copy and put together again what it carries.
    joined = pa.concat_tables([row, row, row])
    assert from_row(joined.slice(1, 1).combine_chunks()) == batch
    assert fragment_from_dict(json.loads(json.dumps(dataclasses.asdict(fragment)))) == fragment
    assert unit_from_dict(dataclasses.asdict(fragment.unit)) == fragment.unit


def test_the_inner_tables_are_not_copied() -> None:
    batch = make_batch(Fragment(Unit.of((), ""), 0, True), ["x" * 1000] * 1000)
    row = to_row(batch)
    before = pa.total_allocated_bytes()
    opened = from_row(row)
    assert pa.total_allocated_bytes() - before < 10_000
    assert opened.table.nbytes > 1_000_000


@given(units=st.lists(st.tuples(st.lists(EXTENTS, max_size=2), TEXT), min_size=2, max_size=2))
def test_different_units_have_different_names(units: list[tuple[list[Extent], str]]) -> None:
    (one, reading_one), (other, reading_other) = units
    same = (one, reading_one) == (other, reading_other)
    names = {Unit.of(tuple(extents), reading).digest for extents, reading in units}
    assert (len(names) == 1) == same


def test_keys_are_safe_in_any_path() -> None:
    unit = Unit.of((Extent(SourceFile("../../é /?#'\"\n", 1, "..")),), "reading")
    assert set(Fragment(unit, 12, False).key) <= set("0123456789abcdef-")
    assert Fragment(unit, 12, False).key.endswith("-00012")


def test_advancing_keeps_rejected_rows_and_counts() -> None:
    batch = make_batch(Fragment(Unit.of((), ""), 0, True), ["a", "b"])
    more = [{"doc_id": "x", "source_path": "p", "source_row": 4, "reason": "s", "message": "n"}]
    after = batch.advance(batch.table.slice(0, 1), more, tokens=5).spent("embed", 1.0).spent("embed", 0.5)
    assert after.rejected["reason"].to_pylist() == ["r", "s"]
    assert (after.counts.rows, after.counts.tokens) == (3, 5)
    assert after.counts.seconds == {"read": 0.5, "embed": 1.5}
    assert batch.rejected.num_rows == 1
