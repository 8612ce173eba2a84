"""Generated retrieval and reranking tasks, with ties and cut-offs, against mteb's similarities, metrics and tasks.

EMBEDFLEET_TASKS says how many; a few dozen without it.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.embedder.recipe.keywords import Similarity
from operators.errors import InputError
from operators.evaluation.encoding import comparable
from operators.evaluation.mteb_model import MtebModel
from operators.evaluation.nearest import NearestDocuments, nearest_of_block
from operators.evaluation.reranking import Candidates, score_reranking
from operators.evaluation.retrieval import score_run
from operators.evaluation.tasks import Task
from tests.operators.evaluation.local_encoder import WordEncoder

pytest.importorskip("mteb")

from mteb.similarity_functions import cos_sim, dot_score

from tests.mteb_tasks import retrieval_scores

TASKS = int(os.environ.get("EMBEDFLEET_TASKS", "40"))
THEIRS = {"cosine": cos_sim, "dot": dot_score}


@st.composite
def _tasks(draw: Any) -> dict[str, Any]:
    ks = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True))
    return {
        "seed": draw(st.integers(0, 1 << 30)),
        "num_queries": draw(st.integers(1, 12)),
        "num_docs": draw(st.integers(1, 60)),
        "dim": draw(st.integers(1, 6)),
        "largest": draw(st.integers(1, 4)),  # of a component, a whole number: the fewer there are, the more ties
        "block": draw(st.integers(1, 60)),
        "ks": tuple(sorted({1, *ks})),  # mteb takes recall at 1 for granted
        "ignore": draw(st.booleans()),
        "similarity": draw(st.sampled_from(["cosine", "dot"])),
    }


@settings(max_examples=TASKS, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(facts=_tasks())
@pytest.mark.timeout(0 if TASKS > 100 else 300)
def test_a_task_ranks_and_scores_as_mteb_does(facts: dict[str, Any]) -> None:
    rng = np.random.default_rng(facts["seed"])
    similarity: Similarity = facts["similarity"]
    num_queries, num_docs, ks = facts["num_queries"], facts["num_docs"], facts["ks"]
    largest, dim = facts["largest"], facts["dim"]
    queries_QD = rng.integers(-largest, largest + 1, (num_queries, dim)).astype(np.float32)
    vectors_ND = rng.integers(-largest, largest + 1, (num_docs, dim)).astype(np.float32)
    ids = [f"d{i}" for i in range(num_docs)]
    query_ids = tuple(f"d{i}" if facts["ignore"] else f"q{i}" for i in range(num_queries))
    task = Task(name="t", kind="retrieval", path="t", k=ks, ignore_identical_ids=facts["ignore"])
    nearest = NearestDocuments(num_queries, task.depth)
    for start in range(0, num_docs, facts["block"]):
        block_ND = comparable(vectors_ND[start : start + facts["block"]], similarity, "documents")
        block_ids = pa.array(ids[start : start + facts["block"]], pa.string())
        nearest.add(
            nearest_of_block(comparable(queries_QD, similarity, "queries"), block_ND, block_ids, start, task.depth)
        )
    run = nearest.run(query_ids)
    scores_QN = np.asarray(THEIRS[similarity](queries_QD, vectors_ND))
    for query, expected_N in zip(query_ids, scores_QN, strict=True):
        best = np.sort(expected_N)[::-1][: task.depth]
        assert sorted(run[query].values(), reverse=True) == pytest.approx(best.tolist(), abs=1e-5)
        for doc, score in run[query].items():
            assert score == pytest.approx(float(expected_N[int(doc[1:])]), abs=1e-5)
    qrels = {query: {doc: int(rng.integers(0, 3)) for doc in rng.choice(ids, min(5, num_docs))} for query in query_ids}
    found = score_run(run, qrels, ks, facts["ignore"]).metrics
    kept = {
        query: {doc: s for doc, s in docs.items() if not (facts["ignore"] and doc == query)}
        for query, docs in run.items()
    }
    expected = retrieval_scores(kept, qrels, ks)
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=6e-6), name  # mteb rounds to five digits


class _Fixed(WordEncoder):
    """Texts that are numbers of vectors, which may be of any length."""

    def __init__(self, similarity: Similarity, vectors_ND: Any) -> None:
        super().__init__(similarity=similarity)
        self._rows = vectors_ND

    def embed(self, texts: Any, prompted: Any) -> Any:
        """See `Encoder.embed`."""
        return self._rows[[int(text) for text in texts]]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_candidates_are_ranked_by_the_models_own_similarity(similarity: Similarity) -> None:
    vectors_ND = np.array([[1, 0], [1, 0.1], [9, 9]], np.float32)  # the query, one beside it, one longer
    data = Candidates(("0",), ((("positive", "1", 1), ("negative", "2", 0)),), ())
    task = Task(name="t", kind="reranking", path="t", k=(1,))
    found = score_reranking(task, data, _Fixed(similarity, vectors_ND)).metrics["ndcg_at_1"]
    assert found == (1 if similarity == "cosine" else 0)


@pytest.mark.parametrize("name", ["cosine", "dot"])
def test_mteb_is_told_the_similarity_and_gets_it(name: Similarity) -> None:
    class Spec:
        model, fingerprint, dim = "words", "0" * 64, 24

        class recipe:
            max_tokens = 512
            similarity = name
            prompts: ClassVar[dict[str, str]] = {}

    model = MtebModel(WordEncoder(similarity=name), Spec())  # type: ignore[arg-type]
    assert model.mteb_model_meta.similarity_fn_name == name
    one, other = np.random.default_rng(0).normal(size=(2, 5, 24)).astype(np.float32)
    expected = np.asarray(THEIRS[name](one, other))
    np.testing.assert_allclose(model.similarity(one, other), expected, atol=1e-5)
    np.testing.assert_allclose(model.similarity_pairwise(one, other), np.diag(expected), atol=1e-5)


def test_a_similarity_that_is_no_inner_product_is_refused() -> None:
    with pytest.raises(InputError, match="models that compare by manhattan do not rank"):
        comparable(np.ones((1, 2), np.float32), "manhattan", "texts")
