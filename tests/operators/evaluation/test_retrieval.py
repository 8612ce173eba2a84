"""Metrics of rankings against MTEB's own code on the same run."""

from __future__ import annotations

import numpy as np
import pytest

from operators.errors import InputError
from operators.evaluation.retrieval import check_judged, score_run
from operators.evaluation.tasks import Task

pytest.importorskip("mteb")

from tests.mteb_tasks import retrieval_scores

KS = (1, 3, 5, 10, 20, 100, 1000)


def random_run(
    seed: int, num_queries: int = 40, num_docs: int = 300
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Scores with many ties, and graded judgements of some of the documents."""
    rng = np.random.default_rng(seed)
    run, qrels = {}, {}
    for query in range(num_queries):
        found = rng.permutation(num_docs)[: rng.integers(5, 150)]
        run[f"q{query}"] = {f"d{doc}": float(np.round(rng.normal(), 1)) for doc in found}
        judged = rng.permutation(num_docs)[: rng.integers(1, 30)]
        qrels[f"q{query}"] = {f"d{doc}": int(rng.integers(0, 4)) for doc in judged}
    return run, qrels


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_is_mtebs(seed: int) -> None:
    run, qrels = random_run(seed)
    found = score_run(run, qrels, KS).metrics
    expected = retrieval_scores(run, qrels, KS)
    assert set(found) == set(expected) - {"accuracy"}
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=6e-6), name  # MTEB rounds to five digits


def test_identical_ids_are_dropped_on_request() -> None:
    run, qrels = {"a": {"a": 1.0, "b": 0.5}}, {"a": {"b": 1}}
    assert score_run(run, qrels, (1,)).metrics["ndcg_at_1"] == 0
    assert score_run(run, qrels, (1,), ignore_identical_ids=True).metrics["ndcg_at_1"] == 1


def test_a_query_without_results_counts_as_zero() -> None:
    outcome = score_run({"a": {"x": 1.0}}, {"a": {"x": 1}, "b": {"y": 1}}, (10,))
    assert outcome.metrics["ndcg_at_10"] == 0.5
    assert outcome.notes == ("1 queries found nothing and score 0",)


def test_a_nan_similarity_is_refused() -> None:
    with pytest.raises(InputError, match="1 of 2 similarities are not finite"):
        score_run({"a": {"x": float("nan"), "y": 1.0}}, {"a": {"x": 1}}, (10,))


def test_judgements_of_another_corpus_are_refused() -> None:
    with pytest.raises(InputError, match="check the ids"):
        check_judged({"a": {"x": 1.0}}, {"a": {"other": 1}})


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_at_depth_is_enough_where_identical_ids_are_dropped(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ks = (1, 2, int(rng.integers(3, 9)))
    task = Task(name="t", kind="retrieval", path="t", k=ks, ignore_identical_ids=True)
    names = [f"d{i}" for i in range(30)]
    full = {name: dict(zip(names, rng.permutation(30).astype(float).tolist(), strict=True)) for name in names}
    for name in names:
        full[name][name] = 99.0  # a text is nearest to itself
    cut = {query: dict(sorted(found.items(), key=lambda it: -it[1])[: task.depth]) for query, found in full.items()}
    qrels = {name: {names[i]: 1 for i in rng.permutation(30)[:4]} for name in names}
    assert score_run(cut, qrels, ks, True).metrics == score_run(full, qrels, ks, True).metrics
