"""However the vectors are spread over shards, a search finds what one big faiss index finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from operators.index import Index
from operators.index.library import faiss
from operators.index.snapshot import Settings, read_index, trained_file
from operators.index.spec import Metric, take_apart
from operators.storage import Location
from tests.index_building import all_vectors, build_index
from tests.vector_datasets import Documents, clustered, write_dataset

DIM, COUNT, K = 32, 6000, 10
SETTINGS = Settings(nprobe=6, ef=8000, k_factor=4)
KINDS: list[tuple[str, Metric]] = [
    ("Flat", "cosine"),
    ("Flat", "l2"),
    ("SQ8", "ip"),
    ("PQ16x4fs", "cosine"),
    ("HNSW16", "cosine"),
    ("HNSW16,SQ8", "l2"),
    ("IVF32,Flat", "cosine"),
    ("IVF32,Flat", "l2"),
    ("IVF32,SQ8", "cosine"),
    ("IVF32,SQ8", "l2"),
    ("IVF32,SQfp16", "ip"),
    ("IVF32,PQ8", "cosine"),
    ("IVF32,PQ8", "l2"),
    ("IVF32,PQ16x4fs", "cosine"),
    ("IVF32,PQ16x4fsr", "l2"),
    ("IVF32,PQ16x4fs,Refine(SQ8)", "cosine"),
    ("IVF32,PQ16x4fs,RFlat", "l2"),
    ("RR32,IVF32,RaBitQ", "cosine"),
    ("RR32,IVF32,RaBitQfs,Refine(SQfp16)", "l2"),
    ("IVF32_HNSW16,SQ8", "cosine"),
    ("PCA16,IVF32,SQ8", "cosine"),
]
LONG_TRAINED = pytest.param("OPQ8_32,IVF32,PQ8", "l2", marks=pytest.mark.slow)  # 20 s


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """6,000 clustered vectors in 20 fragments."""
    folder = str(tmp_path_factory.mktemp("sharding") / "vectors")
    write_dataset(folder, [("a.jsonl", Documents.of(clustered(COUNT, DIM)))], rows_per_fragment=300)
    return Location(folder)


@pytest.fixture(scope="module")
def queries() -> NDArray[np.float32]:
    """Vectors like the documents, but none of them."""
    return clustered(64, DIM, seed=7)


@pytest.mark.parametrize(("factory", "metric"), [*KINDS, LONG_TRAINED])
def test_shards_answer_like_one_index_of_faiss_alone(
    factory: str, metric: Metric, dataset: Location, queries: NDArray[np.float32], tmp_path: Path
) -> None:
    scores, rows = reference(factory, metric, dataset, queries, build(tmp_path, 1, dataset, factory, metric))
    one = build(tmp_path, 1, dataset, factory, metric).search(queries, K, settings=SETTINGS)
    has_ties = "fs" in factory  # 4-bit codes give whole groups of vectors one score
    assert_as_good(one, scores, rows, metric) if has_ties else assert_same(one, scores, rows)
    for shards in (4, 16):
        index = build(tmp_path, shards, dataset, factory, metric)
        found = index.search(queries, K, settings=SETTINGS)
        assert_same(found, one["score"].to_numpy().reshape(-1, K), numbers(one))


@pytest.mark.parametrize("factory", ["IVF32,SQ8", "IVF32,PQ16x4fs,Refine(SQ8)", "RR32,IVF32,RaBitQ"])
def test_shards_by_list_answer_like_one_index(
    factory: str, dataset: Location, queries: NDArray[np.float32], tmp_path: Path
) -> None:
    whole = build(tmp_path, 1, dataset, factory, "cosine")
    scores, rows = reference(factory, "cosine", dataset, queries, whole)
    index = build_index(
        with_training(tmp_path / "by-list", tmp_path / "1"), dataset, factory, "cosine", shards=5, by="list"
    )
    assert len(index.snapshot.shards) > 2
    assert [s.lists[0] for s in index.snapshot.shards if s.lists][1:] == [
        s.lists[1] for s in index.snapshot.shards if s.lists
    ][:-1]
    assert_as_good(index.search(queries, K, settings=SETTINGS), scores, rows, "cosine")


@pytest.mark.parametrize(("factory", "metric"), [k for k in KINDS if k[0] not in ("IVF32,PQ16x4fsr",)][::3])
def test_a_filter_gives_the_same_on_any_number_of_shards(
    factory: str, metric: Metric, dataset: Location, queries: NDArray[np.float32], tmp_path: Path
) -> None:
    one = build(tmp_path, 1, dataset, factory, metric).search(
        queries, K, filter="lang in ['en', 'ja'] and year < 2020", columns=["lang", "year"], settings=SETTINGS
    )
    assert set(one["lang"].to_pylist()) <= {"en", "ja"}
    assert max(one["year"].to_pylist()) < 2020
    many = build(tmp_path, 4, dataset, factory, metric).search(
        queries, K, filter="lang in ['en', 'ja'] and year < 2020", settings=SETTINGS
    )
    assert many.num_rows == one.num_rows == len(queries) * K
    assert_same(many, one["score"].to_numpy().reshape(-1, K), numbers(one))


def test_many_queries_at_once_find_the_same_as_few(
    dataset: Location, queries: NDArray[np.float32], tmp_path: Path
) -> None:
    """Many queries are searched list by list, few of them query by query."""
    many = clustered(600, DIM, seed=8)
    for factory, metric in (("IVF32,SQ8", "cosine"), ("IVF32,Flat", "l2"), ("IVF32,SQfp16", "ip")):
        index = build(tmp_path / factory, 3, dataset, factory, metric)  # type: ignore[arg-type]
        together = index.search(many, K, filter="lang != 'en'", settings=SETTINGS)
        alone = [index.search(many[i : i + 4], K, filter="lang != 'en'", settings=SETTINGS) for i in range(0, 600, 4)]
        scores = np.concatenate([part["score"].to_numpy().reshape(-1, K) for part in alone])
        assert_same(together, scores, np.concatenate([numbers(part) for part in alone]))


def build(folder: Path, shards: int, dataset: Location, factory: str, metric: Metric) -> Index:
    target = with_training(folder / str(shards), folder / "1") if shards > 1 else Location(str(folder / "1"))
    if (Path(target.url) / "snapshots").exists():
        return Index(target, read_index(target))
    return build_index(target, dataset, factory, metric, shards)


def with_training(folder: Path, other: Path) -> Location:
    """A folder with the trained index of another, so that both have the same."""
    folder.mkdir(parents=True, exist_ok=True)
    if (other / "trained.faiss").exists():
        (folder / "trained.faiss").write_bytes((other / "trained.faiss").read_bytes())
    return Location(str(folder))


def reference(
    factory: str, metric: Metric, dataset: Location, queries: NDArray[np.float32], built: Index
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What faiss alone finds with the same trained index and all vectors in it."""
    index = faiss.read_index(trained_file(built.location, 1).url)
    index.add(all_vectors(dataset, built.identity.space))
    parts = take_apart(index)
    if parts.is_ivf:
        parts.core.nprobe = SETTINGS.nprobe
        quantizer = faiss.downcast_index(parts.core.quantizer)
        if isinstance(quantizer, faiss.IndexHNSW):
            quantizer.hnsw.efSearch = 64
    if isinstance(parts.core, faiss.IndexHNSW):
        parts.core.hnsw.efSearch = SETTINGS.ef
    if parts.refine is not None:
        faiss.downcast_index(index).k_factor = SETTINGS.k_factor
    prepared = built.identity.space.prepared(queries, "queries")
    scores, rows = index.search(prepared, K)
    return scores, rows


def numbers(found: Any) -> NDArray[np.int64]:
    return np.array([int(name[4:]) for name in found["doc_id"].to_pylist()]).reshape(-1, K)


def assert_as_good(found: Any, scores: NDArray[np.float32], rows: NDArray[np.int64], metric: Metric) -> None:
    """The same as faiss alone, or better where more of equal candidates were ranked; that is rare."""
    got = found["score"].to_numpy().reshape(-1, K)
    assert (got >= scores - 2e-5 if metric != "l2" else got <= scores + 2e-5 * (1 + scores)).all()
    same = np.isclose(got, scores, rtol=2e-5, atol=2e-5).all(axis=1)
    assert same.mean() > 0.85, "more than ties explain"
    assert (numbers(found) == rows)[same].mean() > 0.98


def assert_same(found: Any, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
    """The same scores, and the same documents but for equally good ones."""
    got = found["score"].to_numpy().reshape(-1, K)
    np.testing.assert_allclose(got, scores, rtol=2e-5, atol=2e-5)
    different = numbers(found) != rows
    for query, place in zip(*np.nonzero(different), strict=True):
        ties = np.isclose(scores[query], got[query, place], rtol=2e-5, atol=2e-5)
        assert ties.sum() > 1 or ties[-1], f"query {query}, rank {place + 1}: another document, and no tie"
    assert different.mean() < 0.05
