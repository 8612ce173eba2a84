"""Hashes of ids, and which of the rows that share one come later, against plain sets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from operators.corpus.duplicates import (
    CANDIDATES,
    common_hashes,
    hash_ids,
    is_among,
    later_occurrences,
    repeated_hashes,
)

HASHES = st.lists(st.sampled_from([0, 1, 2, 5, 2**63, 2**64 - 1]), max_size=8)


def candidates(rows: list[tuple[str, int, int]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [[], [], []]
    return pa.table([pa.array(list(c), f.type) for c, f in zip(columns, CANDIDATES, strict=True)], schema=CANDIDATES)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 9)), unique_by=lambda r: r[1:]))
def test_later_ones_are_all_but_the_first_of_each_id(rows: list[tuple[str, int, int]]) -> None:
    seen, expected = set(), []
    for row in sorted(rows, key=lambda row: row[1:]):
        if row[0] in seen:
            expected.append(row)
        seen.add(row[0])
    assert [tuple(row.values()) for row in later_occurrences(candidates(rows)).to_pylist()] == expected


def test_hashes_do_not_depend_on_the_process() -> None:
    assert hash_ids(pa.array(["doc-1", "é"])).tolist() == [15875389535068581627, 16908809132758853863]


def test_ids_with_equal_hashes_are_told_apart() -> None:
    later = later_occurrences(candidates([("one", 0, 0), ("other", 1, 0), ("one", 2, 3)]))
    assert later.to_pylist() == [{"doc_id": "one", "ordinal": 2, "position": 3}]


@given(HASHES, HASHES)
def test_hashes_are_compared_as_sets_are(some: list[int], others: list[int]) -> None:
    a, b = np.sort(np.array(some, np.uint64)), np.sort(np.array(others, np.uint64))
    assert set(common_hashes(a, b).tolist()) == set(some) & set(others)
    assert is_among(np.array(some, np.uint64), b).tolist() == [hash_ in others for hash_ in some]
    assert set(repeated_hashes(a).tolist()) == {hash_ for hash_ in some if some.count(hash_) > 1}
