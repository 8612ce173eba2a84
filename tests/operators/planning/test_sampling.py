"""Units are drawn by their bytes, and a unit's sample counts what its rows became."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.planning.sampling import PlanConfig, UnitSample, choose_units, sample_of
from operators.work.fragment import REJECTED_SCHEMA, Counts, Extent, Fragment, FragmentBatch, SourceFile, Unit


@given(
    sizes=st.lists(st.integers(0, 10**12), min_size=1, max_size=60),
    num_units=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_choose_units_gives_distinct_units_and_consistent_totals(sizes: list[int], num_units: int, seed: int) -> None:
    draw = choose_units(np.array(sizes), num_units, seed)
    listed = np.maximum(sizes, 1)
    assert len(set(draw.indices_D.tolist())) == len(draw.indices_D) == min(num_units, len(sizes))
    assert draw.indices_D.tolist() == sorted(draw.indices_D.tolist())
    assert draw.num_bytes == listed.sum()
    assert draw.rest_bytes + listed[draw.indices_D[draw.certain_D]].sum() == draw.num_bytes
    assert 0 <= draw.correction <= 1


def test_choose_units_draws_each_unit_in_proportion_to_its_bytes() -> None:
    sizes = np.array([100, 200, 300, 400, 500, 600, 700, 800])
    hits = np.zeros(8)
    for seed in range(4000):
        hits[choose_units(sizes, 2, seed).indices_D] += 1
    np.testing.assert_allclose(hits / 4000, 2 * sizes / sizes.sum(), atol=0.03)


def test_choose_units_always_takes_a_unit_larger_than_a_sampling_step() -> None:
    sizes = np.array([5, 5, 1000, 5, 5, 5, 5, 5])
    draws = [choose_units(sizes, 3, seed) for seed in range(20)]
    assert all(2 in draw.indices_D[draw.certain_D] and draw.rest_bytes == 35 for draw in draws)
    assert len({tuple(draw.indices_D) for draw in draws}) > 1


def test_choose_units_with_the_same_seed_draws_the_same() -> None:
    sizes = np.arange(1, 1000)
    assert choose_units(sizes, 10, 4).indices_D.tolist() == choose_units(sizes, 10, 4).indices_D.tolist()
    assert choose_units(sizes, 10, 4).indices_D.tolist() != choose_units(sizes, 10, 5).indices_D.tolist()


def test_choose_units_of_fewer_units_than_wanted_takes_them_all_for_certain() -> None:
    draw = choose_units(np.array([10, 0, 30]), 5, 0)
    assert draw.indices_D.tolist() == [0, 1, 2]
    assert draw.certain_D.all()
    assert draw.rest_bytes == 0


def test_rows_to_read_go_by_the_bytes_that_a_unit_stands_for() -> None:
    sizes = np.array([8000, 100, 50, 150, 100])
    draw = choose_units(sizes, 3, 0)
    rows_D = draw.rows_to_read(sizes, 1000)
    assert rows_D[0] == math.ceil(1000 * 8000 / 8400)
    assert set(rows_D[1:].tolist()) == {math.ceil(1000 * 200 / 8400)}


def test_rows_to_read_of_a_small_unit_are_enough_to_see_a_spread() -> None:
    sizes = np.array([10**9, 10])
    assert choose_units(sizes, 2, 0).rows_to_read(sizes, 100).tolist() == [100, 10]


def batch_of(places: list[tuple[str, int, int, int]], rejected: list[tuple[str, int | None]]) -> FragmentBatch:
    """A batch at the TOKENS stage: (path, row, chunk, tokens) each, and rejected rows."""
    unit = Unit.of((Extent(SourceFile("a", 1, "v")),), "test")
    columns = {
        "doc_id": [f"doc-{path}{row}" for path, row, _, _ in places],
        "source_path": [path for path, _, _, _ in places],
        "source_row": [row for _, row, _, _ in places],
        "chunk": [chunk for _, _, chunk, _ in places],
        "num_tokens": [tokens for _, _, _, tokens in places],
        "char_end": [100 * (chunk + 1) for _, _, chunk, _ in places],
        "truncated": [tokens == 256 for _, _, _, tokens in places],
    }
    bad = [
        {"doc_id": None, "source_path": path, "source_row": row, "reason": "null_text", "message": "m"}
        for path, row in rejected
    ]
    table = pa.table(columns, schema=TOKENS_SCHEMA)
    counts = Counts(rows=99, rejected=len(bad), lost_tokens=17)
    return FragmentBatch(Fragment(unit, 0, True), table, pa.Table.from_pylist(bad, schema=REJECTED_SCHEMA), counts)


TOKENS_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source_path", pa.string()),
        ("source_row", pa.int64()),
        ("chunk", pa.int32()),
        ("num_tokens", pa.int32()),
        ("char_end", pa.int64()),
        ("truncated", pa.bool_()),
    ]
)


def test_sample_of_a_batch_puts_rejected_rows_between_the_good_ones() -> None:
    batch = batch_of([("a", 0, 0, 9), ("a", 2, 0, 256), ("a", 2, 1, 8), ("b", 5, 0, 4)], [("a", 1), ("b", None)])
    sample = sample_of(5000, 1000, batch)
    assert sample.chunks_by_row_R.tolist() == [1, 0, 2, 1, 0]
    assert sample.text_chars_by_row_R.tolist() == [100, 0, 200, 100, 0]
    assert sample.tokens_by_chunk_C.tolist() == [9, 256, 8, 4]
    assert (sample.truncated, sample.lost_tokens, sample.id_bytes) == (1, 17, 18)
    assert sample.share_read == 0.2


def test_sample_of_a_batch_of_rejected_rows_only_has_no_chunks() -> None:
    sample = sample_of(10, 10, batch_of([], [("a", 0), ("a", 1)]))
    assert sample.chunks_by_row_R.tolist() == [0, 0]
    assert len(sample.tokens_by_chunk_C) == 0
    assert sample.id_bytes == sample.truncated == 0


def test_unit_sample_whose_chunks_do_not_add_up_is_refused() -> None:
    good = UnitSample(10, 5, np.array([1, 2]), np.array([3, 3]), np.array([4, 4, 4]))
    with pytest.raises(AssertionError, match="one token count for each chunk"):
        dataclasses.replace(good, chunks_by_row_R=np.array([1, 1]))


def test_plan_config_refuses_an_unknown_key_and_no_rows() -> None:
    with pytest.raises(ValidationError, match="sample_row"):
        PlanConfig.model_validate({"sample_row": 5})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        PlanConfig(sample_rows=0)
