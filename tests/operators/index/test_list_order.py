"""Many queries at once: by list, with a finer store for all, or in parts; always what faiss finds in those lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from operators.index import list_order, refining, scanning
from operators.index.library import faiss, use_threads
from operators.index.list_costs import ScanCost
from operators.index.list_order import search_by_list
from operators.index.refining import best_candidates
from operators.index.trained import Prepared
from tests.vector_datasets import clustered

DIM, COUNT = 16, 2000
METRICS = [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2]
VECTORS, QUERIES = clustered(COUNT, DIM), clustered(300, DIM, seed=5)
VECTORS[1000:1020] = VECTORS[:20]  # ties


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take most of the time of so small products on a busy machine."""
    threads = faiss.omp_get_max_threads()
    use_threads(1)
    yield
    use_threads(threads)


def filled(factory: str, metric: int, emptied: int = 0) -> Any:
    """An index with inverted lists, of which the first some are empty."""
    index = faiss.index_factory(DIM, factory, metric)
    index.train(VECTORS)
    index.add(VECTORS)
    if emptied:
        inside = [faiss.rev_swig_ptr(index.invlists.get_ids(i), index.invlists.list_size(i)) for i in range(emptied)]
        index.remove_ids(np.concatenate(inside))
    return index


def prepared(index: Any, probes: int) -> Prepared:
    coarse_QP, lists_QP = index.quantizer.search(QUERIES, probes)
    return Prepared(QUERIES, QUERIES, lists_QP, coarse_QP)


def assert_same_scores(found: Any, expected: Any) -> None:
    """Equal scores, and equal ids wherever a score stands alone."""
    assert ((found[1] < 0) == (expected[1] < 0)).all()
    there = expected[1] >= 0
    np.testing.assert_allclose(found[0][there], expected[0][there], rtol=1e-4, atol=1e-4)
    finite = np.where(there, expected[0], 1e9)
    gaps = np.abs(np.diff(finite, axis=1, prepend=2e9, append=2e9))
    alone = (gaps[:, :-1] > 1e-3) & (gaps[:, 1:] > 1e-3) & (expected[1] >= 0)
    assert (found[1] == expected[1])[alone].all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,SQ8", "IVF16,SQfp16", "IVF16,SQ4", "IVF16,PQ8np"])
@pytest.mark.parametrize("k", [1, 40])
def test_by_list_finds_what_faiss_finds(factory: str, metric: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(factory, metric, emptied=3)
    queries = prepared(index, 5)
    assert queries.lists_QP is not None
    assert queries.coarse_QP is not None
    rows = np.random.default_rng(0).random(COUNT) < 0.3
    for mask in (None, rows, np.zeros(COUNT, bool)):
        selector = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        expected = scanning.search_lists(index, QUERIES, queries.lists_QP, queries.coarse_QP, k, selector)
        for block_bytes in (8 << 20, 1 << 16):  # lists and queries in many parts too
            monkeypatch.setattr(list_order, "_BLOCK_BYTES", block_bytes)
            assert_same_scores(search_by_list(index, None, index.quantizer, queries, k, mask), expected)


def test_a_list_that_a_graph_did_not_find_is_left_out() -> None:
    index = filled("IVF16,SQ8", METRICS[0])
    queries = prepared(index, 4)
    assert queries.lists_QP is not None
    assert queries.coarse_QP is not None
    queries.lists_QP[::3, 2:] = -1
    expected = scanning.search_lists(index, QUERIES, queries.lists_QP, queries.coarse_QP, 10)
    assert_same_scores(search_by_list(index, None, index.quantizer, queries, 10, None), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("finer", ["Flat", "SQ8", "SQfp16"])
def test_by_list_with_a_finer_store_is_exact_in_its_scores(finer: str, metric: int) -> None:
    index, store = filled("IVF16,PQ8x4fs", metric), faiss.index_factory(DIM, finer, metric)
    store.train(VECTORS)
    store.add(VECTORS)
    queries = prepared(index, 16)  # all lists: what the store itself finds
    assert_same_scores(search_by_list(index, store, index.quantizer, queries, 10, None), store.search(QUERIES, 10))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("finer", ["Flat", "SQ8", "SQfp16", "PQ8np"])
@pytest.mark.parametrize("count", [3, 300])
def test_the_best_candidates_are_those_of_the_store(
    finer: str, metric: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = faiss.index_factory(DIM, finer, metric)
    store.train(VECTORS)
    store.add(VECTORS)
    rng = np.random.default_rng(1)
    ordinals_QC = np.stack([rng.choice(COUNT, 40, replace=False) for _ in range(count)])
    ordinals_QC[rng.random(ordinals_QC.shape) < 0.4] = -1
    ordinals_QC[1] = -1
    expected = best_of(store, metric, ordinals_QC, 30)
    for gathered in (2 << 20, 1 << 11):
        monkeypatch.setattr(refining, "_GATHERED_BYTES", gathered)
        found = best_candidates(store, metric == METRICS[0], QUERIES[:count], ordinals_QC, 30)
        assert_same_scores(found, expected)


def best_of(store: Any, metric: int, ordinals_QC: NDArray[np.int64], k: int) -> Any:
    """The same from decoded vectors, in numpy."""
    largest = metric == METRICS[0]
    vectors_QCD = store.reconstruct_n(0, COUNT)[ordinals_QC]
    queries_Q1D = QUERIES[: len(ordinals_QC), None]
    scores_QC = (vectors_QCD * queries_Q1D).sum(-1) if largest else ((vectors_QCD - queries_Q1D) ** 2).sum(-1)
    scores_QC = np.where(ordinals_QC >= 0, scores_QC, -np.inf if largest else np.inf)
    order = np.argsort(-scores_QC if largest else scores_QC, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QC, order, 1), np.take_along_axis(ordinals_QC, order, 1)


def test_the_more_queries_the_sooner_by_list() -> None:
    for factory in ("IVF64,Flat", "IVF64,SQ8", "IVF64,PQ8", "IVF64,RaBitQ"):
        cost = ScanCost.of(faiss.index_factory(384, factory))
        choices = [cost.prefers_lists(num_queries, 16, 1e5) for num_queries in (1, 10, 100, 1000, 10_000, 100_000)]
        assert choices == sorted(choices)
        assert not choices[0]


def test_queries_in_order_of_their_lists_come_back_in_theirs() -> None:
    index = filled("IVF16,SQ8", METRICS[0])
    given = prepared(index, 4)
    ordered = given.by_nearest_list()
    assert ordered.lists_QP is not None
    assert (np.diff(ordered.lists_QP[:, 0]) >= 0).all()
    np.testing.assert_array_equal(ordered.original_QD[ordered.places_Q], QUERIES)
