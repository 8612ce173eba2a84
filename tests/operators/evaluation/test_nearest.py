"""The streamed nearest documents against a sort of all similarities."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from operators.errors import InputError
from operators.evaluation.nearest import NearestDocuments, nearest_of_block


@pytest.mark.parametrize(("num_docs", "k", "rows"), [(1000, 10, 64), (50, 100, 7), (500, 3, 500), (2000, 2, 10)])
def test_blocks_in_any_order_give_the_best_of_all(num_docs: int, k: int, rows: int) -> None:
    rng = np.random.default_rng(num_docs)
    queries = rng.normal(size=(5, 8)).astype(np.float32)
    documents = rng.normal(size=(num_docs, 8)).astype(np.float32)
    ids = [f"doc-{i}" for i in range(num_docs)]
    nearest = NearestDocuments(5, k)
    for start in rng.permutation(range(0, num_docs, rows)).tolist():
        block = pa.array(ids[start : start + rows], pa.string())
        nearest.add(nearest_of_block(queries, documents[start : start + rows], block, start, k))
    assert nearest.ids_kept <= 4 * 5 * k + rows * 5, "of the ids only those stay that are among the best"
    run = nearest.run(tuple("abcde"))
    scores = queries @ documents.T
    for row, query in enumerate("abcde"):
        best = np.argsort(-scores[row])[:k]
        assert sorted(run[query], key=lambda doc: -run[query][doc]) == [ids[i] for i in best]
        np.testing.assert_allclose(sorted(run[query].values(), reverse=True), scores[row][best], rtol=1e-5)


def test_two_documents_of_one_id_are_refused() -> None:
    vectors = np.eye(2, dtype=np.float32)
    nearest = NearestDocuments(1, 5)
    nearest.add(nearest_of_block(vectors[:1], vectors, pa.array(["a", "a"]), 0, 5))
    with pytest.raises(InputError, match="'a' is that of several"):
        nearest.run(("q",))
