"""Duplicate ids, partition by partition, against a dictionary."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from operators.corpus.duplicates import Occurrence, find_suspects, hash_ids, later_occurrences


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=6), st.integers(1, 4))
def test_every_later_occurrence_is_found_whatever_the_partitions(parts: list[list[str]], num_partitions: int) -> None:
    hashed = [(i, np.arange(len(part)), hash_ids(pa.array(part, pa.string()))) for i, part in enumerate(parts)]
    suspects = [
        (parts[ordinal][position], Occurrence(ordinal, position))
        for partition in range(num_partitions)
        for ordinal, positions in find_suspects(iter(hashed), partition, num_partitions).items()
        for position in positions
    ]
    expected, seen = {}, set()
    for ordinal, part in enumerate(parts):
        for position, doc_id in enumerate(part):
            if doc_id in seen:
                expected[Occurrence(ordinal, position)] = doc_id
            seen.add(doc_id)
    assert later_occurrences(suspects) == expected


def test_hashes_do_not_depend_on_the_process() -> None:
    assert hash_ids(pa.array(["doc-1", "é"])).tolist() == [15875389535068581627, 16908809132758853863]


def test_ids_with_equal_hashes_are_told_apart() -> None:
    places = [("one", Occurrence(0, 0)), ("other", Occurrence(1, 0)), ("one", Occurrence(2, 3))]
    assert later_occurrences(places) == {Occurrence(2, 3): "one"}
