"""Rows of entries, moved about and stored, against scipy's sparse matrices."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse

from operators.embedder.recipe.sparse_head import ASSUMED_ENTRIES, SparseHead
from operators.embedder.sparse_vectors import SparseVectors


def random_vectors(count: int, width: int = 50, seed: int = 0) -> tuple[SparseVectors, scipy.sparse.csr_matrix]:
    matrix = scipy.sparse.random(count, width, 0.1, "csr", np.float32, random_state=seed)
    matrix.sort_indices()
    lengths = np.diff(matrix.indptr).astype(np.int64)
    return SparseVectors(lengths, matrix.indices.astype(np.int32), matrix.data), matrix


@pytest.mark.parametrize("count", [0, 1, 40])
def test_rows_are_taken_placed_and_written_out(count: int) -> None:
    vectors, matrix = random_vectors(count)
    dense = np.asarray(matrix.todense())
    np.testing.assert_array_equal(vectors.dense(50), dense)
    rows = np.random.default_rng(1).permutation(count)[: count // 2]
    np.testing.assert_array_equal(vectors.take(rows).dense(50), dense[rows])
    expected = np.zeros((count + 3, 50), np.float32)
    expected[rows] = dense[rows]
    np.testing.assert_array_equal(vectors.take(rows).placed(rows, count + 3).dense(50), expected)
    both = SparseVectors.concat([vectors, vectors])
    np.testing.assert_array_equal(both.dense(50), np.concatenate([dense, dense]))


def test_columns_of_a_table_give_the_vectors_back() -> None:
    vectors, matrix = random_vectors(40)
    table = pa.concat_tables([pa.table(vectors.to_arrow()), pa.table(vectors.to_arrow())]).slice(7, 50)
    dense = np.asarray(matrix.todense())
    np.testing.assert_array_equal(SparseVectors.from_table(table).dense(50), np.concatenate([dense, dense])[7:57])
    assert SparseVectors.from_table(table).faults(50) == []
    assert len(SparseVectors.from_table(table.slice(0, 0))) == 0


@pytest.mark.parametrize(
    ("head", "tokens", "entries"),
    [
        ({"head": "mlm"}, 40, ASSUMED_ENTRIES),
        ({"head": "mlm", "top": 100}, 40, 100),
        ({"head": "token_weights"}, 40, 40),
        ({"head": "next_word", "top": 128}, 300, 128),
    ],
)
def test_entries_of_a_plan(head: dict[str, str], tokens: int, entries: float) -> None:
    settings = SparseHead.model_validate(head)
    assert settings.most_entries(tokens) == entries
    assert settings.is_bounded == (entries != ASSUMED_ENTRIES)
