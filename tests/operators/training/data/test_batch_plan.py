"""Batch plans: every row once per epoch, no text twice in a batch, weights kept, from any step the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from operators.errors import InputError
from operators.training.data import batch_plan
from operators.training.data.batch_plan import BatchPlan, PlannedSet, rank_slice

TEXTS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=60)


def planned(rows: list[tuple[int, ...]], name: str = "set", weight: float | None = None) -> PlannedSet:
    """A set whose rows have these texts."""
    hashes = np.array(rows, np.uint64)
    return PlannedSet(name, len(rows), weight, lambda asked: hashes[asked])


def different(num_rows: int, name: str = "set", weight: float | None = None) -> PlannedSet:
    """A set without a text that comes twice."""
    return planned([(2 * i, 2 * i + 1) for i in range(num_rows)], name, weight)


def epoch_of(plan: BatchPlan, epoch: int) -> list[NDArray[np.int64]]:
    """The batches of an epoch of a plan with one set."""
    batches = plan.num_batches(0)
    return [plan.batch(step).rows_B for step in range(epoch * batches, (epoch + 1) * batches)]


def has_a_text_twice(batch: NDArray[np.int64], rows: list[tuple[int, ...]]) -> bool:
    """Whether two different rows of a batch share a text."""
    texts = Counter(text for row in batch for text in set(rows[row]))
    return any(count > 1 for count in texts.values())


@given(rows=TEXTS, batch_size=st.integers(1, 12), seed=st.integers(0, 5))
def test_no_batch_has_a_text_twice_and_no_row_comes_twice(
    rows: list[tuple[int, ...]], batch_size: int, seed: int
) -> None:
    plan = BatchPlan([planned(rows)], batch_size, seed)
    for epoch in range(2):
        batches = epoch_of(plan, epoch)
        assert len(batches) == -(-len(rows) // batch_size)
        assert not any(has_a_text_twice(batch, rows) for batch in batches)
        placed = np.concatenate(batches)
        assert len(set(placed.tolist())) == len(placed) == len(rows) - plan.num_left_out(0, epoch)
        assert all(len(batch) <= batch_size for batch in batches)
        # Who is left out could be in no batch as it is: each has a row that shares a text with it.
        for row in set(range(len(rows))) - set(placed.tolist()):
            room = [batch for batch in batches if len(batch) < min(batch_size, len(rows) // len(batches))]
            assert all(has_a_text_twice(np.append(batch, row), rows) for batch in room)


@settings(max_examples=50)
@given(
    groups=st.lists(st.integers(1, 4), min_size=30, max_size=60),
    batch_size=st.integers(2, 8),
    seed=st.integers(0, 5),
)
def test_every_row_comes_once_per_epoch_where_each_text_has_fewer_rows_than_there_are_batches(
    groups: list[int], batch_size: int, seed: int
) -> None:
    rows = [(group, 1000 + 10 * group + i) for group, size in enumerate(groups) for i in range(size)]
    plan = BatchPlan([planned(rows)], batch_size, seed)
    for epoch in range(3):
        batches = epoch_of(plan, epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(rows)))
        assert {len(batch) for batch in batches} <= {len(rows) // len(batches), -(-len(rows) // len(batches))}


def test_epochs_and_seeds_have_other_orders() -> None:
    first, second = BatchPlan([different(100)], 10, 0), BatchPlan([different(100)], 10, 1)
    orders = {tuple(np.concatenate(epoch_of(plan, epoch))) for plan in (first, second) for epoch in range(3)}
    assert len(orders) == 6


def test_rows_of_a_batch_are_others_in_each_epoch() -> None:
    plan = BatchPlan([different(4096)], 64, 0)
    together = [set(epoch_of(plan, epoch)[0].tolist()) for epoch in range(20)]
    common = [len(a & b) for i, a in enumerate(together) for b in together[:i]]
    assert np.mean(common) == pytest.approx(64 * 64 / 4096, abs=0.3)  # as of independent draws


@settings(max_examples=25)
@given(rows=TEXTS, steps=st.lists(st.integers(0, 200), min_size=1, max_size=10))
def test_any_order_of_steps_gives_the_batches_of_an_uninterrupted_run(
    rows: list[tuple[int, ...]], steps: list[int]
) -> None:
    def sets() -> list[PlannedSet]:
        return [planned(rows, "a"), different(17, "b", weight=3)]

    uninterrupted = [BatchPlan(sets(), 5, 7).batch(step) for step in range(max(steps) + 1)]
    resumed = BatchPlan(sets(), 5, 7)
    for step in steps:
        batch = resumed.batch(step)
        assert (batch.set_index, batch.epoch) == (uninterrupted[step].set_index, uninterrupted[step].epoch)
        assert batch.rows_B.tolist() == uninterrupted[step].rows_B.tolist()


@settings(max_examples=50)
@given(
    weights=st.lists(st.one_of(st.none(), st.floats(0.01, 100)), min_size=1, max_size=8),
    steps=st.integers(1, 500),
)
def test_each_set_has_its_share_of_the_steps(weights: list[float | None], steps: int) -> None:
    sets = [different(10 + 5 * i, f"set-{i}", weight) for i, weight in enumerate(weights)]
    plan = BatchPlan(sets, 5, 0)
    given_weights = [plan.num_batches(i) if weight is None else weight for i, weight in enumerate(weights)]
    counts = Counter(plan.turn(step)[0] for step in range(steps))
    for i, weight in enumerate(given_weights):
        assert abs(counts[i] - steps * weight / sum(given_weights)) <= len(sets) + 1


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6), batch_size=st.integers(1, 32))
def test_without_weights_all_sets_are_through_at_the_same_step(sizes: list[int], batch_size: int) -> None:
    plan = BatchPlan([different(size, f"set-{i}") for i, size in enumerate(sizes)], batch_size, 3)
    turns = [plan.turn(step) for step in range(2 * plan.steps_per_epoch)]
    per_epoch = [(i, turn) for i in range(len(sizes)) for turn in range(plan.num_batches(i))]
    assert sorted(turns[: plan.steps_per_epoch]) == per_epoch
    assert len(set(turns)) == 2 * plan.steps_per_epoch


@given(num_rows=st.integers(0, 300), world_size=st.integers(1, 9))
def test_ranks_share_a_batch_evenly_and_in_order(num_rows: int, world_size: int) -> None:
    batch = np.arange(num_rows)
    parts = [batch[rank_slice(num_rows, rank, world_size)] for rank in range(world_size)]
    assert np.concatenate(parts).tolist() == batch.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_large_set_is_planned_window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_plan, "WINDOW_ROWS", 1)
    monkeypatch.setattr(batch_plan, "WINDOW_BATCHES", 4)
    asked: list[int] = []
    texts = np.array([(i % 50, 1000 + i) for i in range(200)], np.uint64)

    def hashes(rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        asked.append(len(rows))
        return texts[rows]

    plan = BatchPlan([PlannedSet("set", 200, None, hashes)], 10, 0)
    batches = epoch_of(plan, 0)
    assert asked == [40] * 5
    placed = np.concatenate(batches)
    assert len(set(placed.tolist())) == len(placed)
    assert not any(has_a_text_twice(batch, [tuple(row) for row in texts.tolist()]) for batch in batches)


def test_a_text_in_more_rows_than_batches_has_as_many_rows_as_batches_in_an_epoch() -> None:
    rows = [(0, i + 1) for i in range(30)] + [(100 + i, 200 + i) for i in range(70)]
    plan = BatchPlan([planned(rows)], 10, 0)
    epochs = [np.concatenate(epoch_of(plan, epoch)) for epoch in range(20)]
    assert [len(placed) for placed in epochs] == [80] * 20
    assert plan.num_left_out(0, 0) == 20
    assert set(np.concatenate(epochs).tolist()) == set(range(100))  # others each time, so that all have their turn


def test_rows_of_sets_without_in_batch_negatives_may_share_texts() -> None:
    plan = BatchPlan([PlannedSet("labels", 20)], 10, 0)
    assert sorted(np.concatenate(epoch_of(plan, 0)).tolist()) == list(range(20))


def test_sets_of_the_same_size_have_other_orders_by_their_names() -> None:
    orders = {tuple(BatchPlan([different(50, name)], 50, 0).batch(0).rows_B) for name in ("a", "b", "c")}
    assert len(orders) == 3


def test_sets_without_rows_are_refused() -> None:
    with pytest.raises(InputError, match="take the set 'empty' out"):
        BatchPlan([PlannedSet("empty", 0)], 10, 0)
    with pytest.raises(InputError, match="batch size of at least 1"):
        BatchPlan([PlannedSet("set", 5)], 0, 0)
