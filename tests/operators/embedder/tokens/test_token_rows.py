"""Readings: several of a text in one row, and which of their tokens are pooled."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.embedder.recipe.keywords import PoolOver
from operators.embedder.tokens import token_rows
from operators.embedder.tokens.token_rows import Layout

IDS = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@given(rows=st.lists(st.tuples(IDS, IDS, IDS), max_size=5), skip=st.integers(0, 2))
def test_joined_readings_are_split_again(rows: list[tuple[list[int], ...]], skip: int) -> None:
    columns = [pa.array([row[i] for row in rows], pa.list_(pa.int32())) for i in range(3)]
    joined = token_rows.join(columns)
    assert joined.to_pylist() == [[*a, -1, *b, -1, *c] for a, b, c in rows]
    assert token_rows.split(joined.slice(skip), 3).to_pylist() == [ids for row in rows[skip:] for ids in row]


def test_a_row_without_tokens_has_readings_without_tokens() -> None:
    joined = pa.array([[1, -1, 2, 3], [], [4, -1, 5]], pa.list_(pa.int32()))
    assert token_rows.split(joined, 2).to_pylist() == [[1], [2, 3], [], [], [4], [5]]
    with pytest.raises(ValueError, match="expected 3 readings in each row"):
        token_rows.split(joined, 3)


@pytest.mark.parametrize(
    ("layout", "pool_over", "expected"),
    [
        (Layout(1, 3, 0, 1), "all", [[0, 5], [0, 9]]),
        (Layout(1, 3, 0, 1), "after_prompt", [[4, 5], [4, 9]]),
        (Layout(1, 0, 0, 1), "after_prompt", [[0, 5], [0, 9]]),
        (Layout(1, 3, 0, 1), "text", [[4, 4], [4, 8]]),
        (Layout(1, 1, 1, 0), "text", [[2, 4], [2, 8]]),
        (Layout(1, 1, 0, 1, between=0, copies=2), "text", [[3, 4], [5, 8]]),
        (Layout(0, 1, 1, 1, between=0, copies=2), "text", [[2, 3], [4, 7]]),
    ],
)
def test_spans(layout: Layout, pool_over: PoolOver, expected: list[list[int]]) -> None:
    assert layout.spans(np.array([5, 9]), pool_over).tolist() == expected
    assert layout.leaves_out(pool_over) == (expected != [[0, 5], [0, 9]])


def test_a_row_shorter_than_its_prompt_has_an_empty_span() -> None:
    assert Layout(1, 9, 0, 1).spans(np.array([3]), "after_prompt").tolist() == [[3, 3]]
