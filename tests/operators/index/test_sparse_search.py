"""Sparse and hybrid search over any number of shards, against scipy's product of the whole matrices and plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray

from operators.embedder.sparse_vectors import SparseVectors
from operators.errors import InputError
from operators.index import Index
from operators.index import postings as inverted
from operators.index.fusion import Fusion, fuse
from operators.index.group import Found, merge_sparse
from operators.index.postings import Postings, PostingsWriter
from operators.index.snapshot import Settings
from operators.storage import Location
from tests.index_building import build_index
from tests.vector_datasets import Documents, clustered, write_dataset

COUNT, DIM, IDS, K = 3000, 16, 500, 10
SETTINGS = Settings(nprobe=8, ef=4000)


def random_matrix(count: int, seed: int, density: float = 0.02, levels: int | None = None) -> Any:
    """Sparse vectors of random ids; with few `levels` of weights many scores are equal."""
    matrix = scipy.sparse.random(count, IDS, density, "csr", np.float32, random_state=seed)
    if levels is not None:
        matrix.data = np.ceil(matrix.data * levels).astype(np.float32)
    matrix.sort_indices()
    return matrix


def vectors_of(matrix: Any) -> SparseVectors:
    return SparseVectors(np.diff(matrix.indptr).astype(np.int64), matrix.indices.astype(np.int32), matrix.data)


def expected(
    queries: Any, documents: Any, k: int, mask: NDArray[np.bool_] | None = None
) -> list[list[tuple[int, float]]]:
    """The k best documents of each query by the whole product, equal ones by number."""
    scores_QN = np.asarray((queries @ documents.T).todense())
    answers = []
    for scores_N in scores_QN:
        found = [i for i in np.lexsort((np.arange(len(scores_N)), -scores_N)) if scores_N[i] > 0]
        answers.append([(int(i), float(scores_N[i])) for i in found if mask is None or mask[i]][:k])
    return answers


def pairs(scores_QK: NDArray[np.float32], ids_QK: NDArray[np.int64]) -> list[list[tuple[int, float]]]:
    rows = zip(ids_QK.tolist(), scores_QK.tolist(), strict=True)
    return [[(i, s) for i, s in zip(ids, scores, strict=True) if i >= 0] for ids, scores in rows]


def assert_same(found: list[list[tuple[int, float]]], wanted: list[list[tuple[int, float]]]) -> None:
    assert [[i for i, _ in row] for row in found] == [[i for i, _ in row] for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose([s for _, s in one], [s for _, s in other], rtol=1e-5)


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_an_inverted_file_answers_like_the_whole_product(
    levels: int | None, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inverted, "_SCORES_AT_ONCE", at_once)
    documents, queries = random_matrix(COUNT, 0, levels=levels), random_matrix(60, 1, 0.01, levels)
    writer = PostingsWriter(IDS)
    for start in range(0, COUNT, 700):
        writer.add(vectors_of(documents[start : start + 700]), "here")
    assert writer.entries == documents.nnz
    writer.write(tmp_path / "a.arrow")
    postings = Postings(tmp_path / "a.arrow", COUNT)
    mask = np.random.default_rng(0).random(COUNT) < 0.1
    for allowed in (None, mask, np.zeros(COUNT, bool)):
        found = postings.search(vectors_of(queries), K, allowed)
        assert_same(pairs(*found), expected(queries, documents, K, allowed))
    for nothing in (SparseVectors.empty(0), SparseVectors.empty(3)):
        scores_QK, ordinals_QK = postings.search(nothing, K, None)
        assert scores_QK.shape == (len(nothing), K)
        assert (ordinals_QK == -1).all()


def test_an_empty_inverted_file_finds_nothing(tmp_path: Path) -> None:
    writer = PostingsWriter(IDS)
    writer.add(SparseVectors.empty(4), "here")
    writer.write(tmp_path / "a.arrow")
    _, ordinals_QK = Postings(tmp_path / "a.arrow", 4).search(vectors_of(random_matrix(5, 1)), K, None)
    assert (ordinals_QK == -1).all()
    with pytest.raises(InputError, match="embed here again: 1 sparse weights are not finite and above 0"):
        writer.add(SparseVectors(np.array([1]), np.array([3], np.int32), np.array([np.nan], np.float32)), "here")


def plain_fusion(
    dense: list[tuple[int, float]], sparse: list[tuple[int, float]], fusion: Fusion, k: int
) -> list[tuple[int, float]]:
    """Reciprocal ranks, or min-max scaled scores, in plain loops."""
    total: dict[int, float] = {}
    for side, weight in ((dense, fusion.alpha), (sparse, 1 - fusion.alpha)):
        low, high = min((s for _, s in side), default=0), max((s for _, s in side), default=0)
        for rank, (i, score) in enumerate(side, start=1):
            scaled = (score - low) / (high - low) if high > low else 1.0
            total[i] = total.get(i, 0.0) + (1 / (fusion.constant + rank) if fusion.method == "rrf" else weight * scaled)
    return sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.mark.parametrize("fusion", [Fusion(), Fusion(constant=1), Fusion(method="weighted", alpha=0.3)])
@pytest.mark.parametrize("larger_is_better", [True, False])
def test_fusion_is_the_formula(fusion: Fusion, larger_is_better: bool) -> None:
    rng = np.random.default_rng(0)

    def side(rows: int, columns: int, larger: bool) -> Found:
        ids_QC = np.stack([rng.choice(40, columns, replace=False) for _ in range(rows)]).astype(np.int64)
        scores_QC = np.sort(rng.random((rows, columns)).astype(np.float32), axis=1)
        scores_QC = scores_QC[:, ::-1].copy() if larger else scores_QC
        for row in range(rows):
            ids_QC[row, row * columns // rows :] = -1  # from none to nearly all
        worst = -np.inf if larger else np.inf
        return Found(np.where(ids_QC >= 0, scores_QC, worst).astype(np.float32), ids_QC)

    dense, sparse = side(9, 20, larger_is_better), side(9, 15, True)
    found = fuse(dense, sparse, larger_is_better, fusion, K)
    for row, (dense_row, sparse_row) in enumerate(
        zip(pairs(dense.scores_QK, dense.ids_QK), pairs(sparse.scores_QK, sparse.ids_QK), strict=True)
    ):
        signed = [(i, s if larger_is_better else -s) for i, s in dense_row]
        assert_same([pairs(found.scores_QK, found.ids_QK)[row]], [plain_fusion(signed, sparse_row, fusion, K)])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Location, Documents]:
    """3,000 documents with dense and sparse vectors in 15 fragments."""
    folder = str(tmp_path_factory.mktemp("hybrid") / "vectors")
    documents = Documents.of(clustered(COUNT, DIM), sparse=random_matrix(COUNT, 0, levels=3))
    write_dataset(folder, [("a.jsonl", documents)], rows_per_fragment=200, sparse_dim=IDS)
    return Location(folder), documents


@pytest.mark.parametrize(("shards", "by"), [(1, "document"), (4, "document"), (3, "list")])
@pytest.mark.parametrize("filter", [None, "lang == 'de' and year < 2020"])
def test_sparse_and_hybrid_search_of_shards(
    dataset: tuple[Location, Documents], shards: int, by: Any, filter: str | None, tmp_path: Path
) -> None:
    location, documents = dataset
    index = build_index(Location(str(tmp_path / "index")), location, "IVF8,Flat", "cosine", shards, by)
    assert len(index.snapshot.shards) == shards
    mask = np.array([i % 4 == 1 and 2000 + i % 25 < 2020 for i in range(COUNT)]) if filter else None
    queries, dense_QD = random_matrix(40, 1, 0.01), clustered(40, DIM, seed=3)
    wanted = expected(queries, documents.sparse, K, mask)
    found = numbered(index.search(sparse=queries, k=K, filter=filter), 40)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose([s for _, s in one], [s for _, s in other], rtol=1e-5)
    if by == "document":  # of vectors with equal scores those that come first: by list they come in another order
        assert_same(found, wanted)
    fusion = Fusion(method="weighted", alpha=0.4, depth=50)
    lexical = numbered(index.search(sparse=queries, k=50, filter=filter), 40)
    nearest = numbered(index.search(dense_QD, 50, filter, settings=SETTINGS), 40)
    hybrid = numbered(index.search(dense_QD, K, filter, (), SETTINGS, queries, fusion), 40)
    fused = [plain_fusion(one, other, fusion, K) for one, other in zip(nearest, lexical, strict=True)]
    for one, other in zip(hybrid, fused, strict=True):
        np.testing.assert_allclose([s for _, s in one], [s for _, s in other], rtol=1e-4, atol=1e-6)


def test_hybrid_search_does_not_depend_on_the_shards(dataset: tuple[Location, Documents], tmp_path: Path) -> None:
    location, _ = dataset
    queries, dense_QD = random_matrix(40, 1, 0.01), clustered(40, DIM, seed=3)
    answers = []
    for shards in (1, 4):
        index = build_index(Location(str(tmp_path / str(shards))), location, "Flat", "cosine", shards)
        answers.append(index.search(dense_QD, K, sparse=queries))
    assert answers[0].equals(answers[1])


def numbered(found: Any, queries: int) -> list[list[tuple[int, float]]]:
    """(number of the document, score) of each query."""
    rows: list[list[tuple[int, float]]] = [[] for _ in range(queries)]
    for row in found.to_pylist():
        rows[row["query"]].append((int(row["doc_id"].removeprefix("doc-")), row["score"]))
    return rows


def test_an_index_of_sparse_vectors_alone(tmp_path: Path) -> None:
    documents = Documents.of(np.empty((500, 0), np.float32), sparse=random_matrix(500, 0))
    write_dataset(str(tmp_path / "vectors"), [("a.jsonl", documents)], rows_per_fragment=100, sparse_dim=IDS)
    index = build_index(Location(str(tmp_path / "index")), Location(str(tmp_path / "vectors")), "none", "ip", 3)
    assert (
        sorted(path.suffix for path in (tmp_path / "index" / "shards").iterdir()) == [".arrow"] * 3 + [".parquet"] * 3
    )
    queries = random_matrix(20, 1)
    assert_same(numbered(index.search(sparse=queries), 20), expected(queries, documents.sparse, 10))
    with pytest.raises(InputError, match="has no dense vectors"):
        index.search(np.ones(DIM))


def test_queries_that_do_not_fit_are_refused(dataset: tuple[Location, Documents], tmp_path: Path) -> None:
    location, _ = dataset
    index: Index = build_index(Location(str(tmp_path / "index")), location, "Flat", "cosine")
    for arguments, message in (
        ({}, "give vectors, sparse vectors, or both"),
        ({"sparse": np.ones((1, 7))}, "sparse queries over 500 ids: they have 7"),
        ({"sparse": -np.ones((1, IDS))}, "500 sparse weights are not finite and above 0"),
        ({"vectors": np.ones((2, DIM)), "sparse": np.ones((1, IDS))}, "2 are dense, 1 sparse"),
        ({"sparse": np.ones((1, IDS)), "k": 0}, "at least one result"),
    ):
        with pytest.raises(InputError, match=message):
            index.search(**arguments)  # type: ignore[arg-type]


def test_a_damaged_inverted_file_is_named(dataset: tuple[Location, Documents], tmp_path: Path) -> None:
    location, _ = dataset
    index = build_index(Location(str(tmp_path / "index")), location, "Flat", "cosine")
    (file,) = (tmp_path / "index" / "shards").glob("*.sparse.arrow")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="content is not what was written"):
        Index(index.location, index.snapshot)


def test_answers_of_no_shards_are_empty() -> None:
    found = merge_sparse([], 5, 2)
    assert found.ids_QK.tolist() == [[-1] * 5] * 2
