"""Exact neighbours of held-out queries, recall, and the choice of settings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from operators.index.snapshot import Settings
from operators.index.spec import IndexSpec
from operators.index.truth import HeldOut, Truth, TruthCollector, WholeTruth, merge_truth
from operators.index.tuning import Trial, lower_bound, recall_per_query, settings_ladder, tune

RNG = np.random.default_rng(0)
DOCUMENTS = RNG.standard_normal((500, 16)).astype(np.float32)
QUERIES = RNG.standard_normal((20, 16)).astype(np.float32)
IDS = pa.table({"doc_id": [f"d{i}" for i in range(500)], "chunk": pa.array([0] * 500, pa.int32())})


def collect(rows: NDArray[np.int64], held_out: HeldOut, metric: str) -> Truth:
    collector = TruthCollector(held_out, metric)  # type: ignore[arg-type]
    for start in range(0, len(rows), 70):
        part = rows[start : start + 70]
        collector.add(DOCUMENTS[part], IDS.take(pa.array(part)), start)
    return collector.finish()


def scores(metric: str) -> NDArray[np.float32]:
    if metric == "l2":
        return -((QUERIES[:, None] - DOCUMENTS) ** 2).sum(-1)  # type: ignore[no-any-return]
    return QUERIES @ DOCUMENTS.T


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_neighbours_of_several_shards_are_those_of_all_vectors(metric: str) -> None:
    held_out = HeldOut.of(QUERIES, None, "test", 5)
    shards = np.array_split(np.arange(500), 3)
    truths = [collect(rows, held_out, metric) for rows in shards]
    whole = merge_truth(truths, [None] * 3, 5, metric != "l2")
    exact = np.argsort(-scores(metric), axis=1)[:, :5]
    for query in range(20):
        expected = {
            (n << 40) | int(np.flatnonzero(r == i)[0]) for i in exact[query] for n, r in enumerate(shards) if i in r
        }
        assert whole.accepted[query] == expected
    assert len(whole.queries) == 20


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_deleted_neighbours_give_way_to_the_next_or_the_query_is_left_out(metric: str) -> None:
    held_out = HeldOut.of(QUERIES, None, "test", 5)
    truth = collect(np.arange(500), held_out, metric)
    ranked = np.argsort(-scores(metric), axis=1)
    alive = np.ones(500, bool)
    alive[ranked[0, :3]] = False
    whole = merge_truth([truth], [alive], 5, metric != "l2")
    assert whole.accepted[0] == {int(i) for i in [j for j in ranked[0] if alive[j]][:5]}
    alive = np.ones(500, bool)
    alive[ranked[0, : held_out.depth]] = False
    whole = merge_truth([truth], [alive], 5, metric != "l2")
    assert 0 not in whole.queries, "its next neighbours were not kept"


def test_a_query_that_is_a_document_does_not_find_itself() -> None:
    own = IDS.slice(40, 20)
    held_out = HeldOut.of(DOCUMENTS[40:60], own, "documents", 5)
    truth = collect(np.arange(500), held_out, "l2")
    assert truth.own_Q.tolist() == list(range(40, 60))
    assert not (truth.ordinals_QK == truth.own_Q[:, None]).any()
    distances = ((DOCUMENTS[40:60, None] - DOCUMENTS) ** 2).sum(-1)
    second = np.argsort(distances, axis=1)[:, 1]
    assert truth.ordinals_QK[:, 0].tolist() == second.tolist()


def test_fewer_vectors_than_neighbours() -> None:
    held_out = HeldOut.of(QUERIES, None, "test", 10)
    whole = merge_truth([collect(np.arange(4), held_out, "ip")], [None], 10, True)
    assert whole.wanted_Q.tolist() == [4] * 20
    found = np.full((20, 10), -1, np.int64)
    found[:, :2] = [0, 1]
    assert recall_per_query(found, whole, 10).tolist() == [0.5] * 20


def test_the_bound_is_that_of_a_mean_over_queries() -> None:
    recall_Q = np.array([1.0] * 80 + [0.5] * 20)
    assert lower_bound(recall_Q) == pytest.approx(0.9 - 1.645 * recall_Q.std(ddof=1) / 10)
    assert lower_bound(np.array([1.0])) == 0.0, "one query proves nothing"


def model(recall_of: Callable[[Settings], float]) -> Callable[[Settings], Trial]:
    """An index whose recall and cost follow from the settings: what a query finds is a share of 0..9."""

    def attempt(settings: Settings) -> Trial:
        rng = np.random.default_rng(1)
        found = np.where(rng.random((200, 10)) < recall_of(settings), np.arange(10), 99)
        return Trial(found, settings.nprobe * 0.01 + settings.k_factor * 0.002, settings.nprobe * 50.0)

    return attempt


WHOLE = WholeTruth(tuple(frozenset(range(10)) for _ in range(200)), np.full(200, 10), np.arange(200))


def test_the_cheapest_settings_that_reach_the_target_are_chosen() -> None:
    ladder = settings_ladder(IndexSpec("IVF64,PQ4x4fs,RFlat", "ip", 16, ""), 10_000, 10)
    assert {s.nprobe for s in ladder} == {1, 2, 4, 8, 16, 32, 64}
    chosen, curve = tune(ladder, model(lambda s: min(1, 0.6 + s.nprobe / 20) * min(1, s.k_factor / 4)), WHOLE, 10, 0.95)
    assert chosen.settings == Settings(nprobe=8, k_factor=4)
    assert chosen.lower >= 0.95
    assert len(curve) < len(ladder), "what is dearer than a setting that does is not measured"


def test_where_nothing_reaches_the_target_the_best_is_chosen() -> None:
    ladder = settings_ladder(IndexSpec("IVF16,SQ8", "ip", 16, ""), 10_000, 10)
    chosen, curve = tune(ladder, model(lambda s: min(0.8, s.nprobe / 10)), WHOLE, 10, 0.95)
    assert chosen.settings.nprobe in (8, 16)
    assert chosen.lower < 0.95
    assert len(curve) == len(ladder)
