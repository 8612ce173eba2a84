"""Packed units are the units that went in."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.work.fragment import Extent, SourceFile, Unit
from operators.work.packed_units import PackedUnits

FILES = st.builds(SourceFile, st.text(max_size=9), st.integers(0, 2**50), st.text(max_size=9))
EXTENTS = st.builds(
    Extent, FILES, st.integers(0, 2**50), st.integers(-1, 2**50), st.integers(-1, 2**40), st.floats(0, 1)
)


@given(st.lists(EXTENTS, max_size=4))
def test_a_digest_is_that_of_the_extents_as_json(extents: list[Extent]) -> None:
    """Outputs of earlier versions are known by these digests."""
    digest = hashlib.blake2b(b"reading", digest_size=12)
    for extent in extents:
        digest.update(json.dumps(dataclasses.astuple(extent)).encode())
    assert Unit.of(tuple(extents), "reading").digest == digest.hexdigest()


@pytest.mark.parametrize("counts", [[], [1], [1] * 2500, [2000, 0, 1, 1023, 1, 1024, 3]])
def test_units_come_back_in_order_and_by_number(counts: list[int]) -> None:
    units = [
        Unit.of(tuple(Extent(SourceFile(f"{n}/{i}.jsonl", i, "é"), first_row=-1) for i in range(count)), str(n))
        for n, count in enumerate(counts)
    ]
    packed = PackedUnits(iter(units))
    assert list(packed) == units
    assert len(packed) == len(units)
    assert [packed[i] for i in range(len(units))] == units
    assert packed[-3:] == units[-3:]
    with pytest.raises(IndexError, match=f"no number {len(units)}"):
        packed[len(units)]
