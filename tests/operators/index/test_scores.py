"""Scores and neighbours are those of comparing all, for every stored type, metric and form of the queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from jobs.embedding.queries import as_queries
from operators.embedder.quantization import OutputDtype, calibrate_scale, to_arrow
from operators.errors import InputError
from operators.index import group
from operators.index.open import Index
from operators.index.queries import Queries, read_query_vectors
from operators.index.snapshot import Settings
from operators.index.spec import Metric
from operators.index.vectors import VectorSpace
from operators.storage import Location
from tests.index_building import build_index
from tests.vector_datasets import Documents, identity_of, write_dataset

DIM, DOCUMENTS, QUERIES, K = 32, 600, 7, 9
CASES: list[tuple[OutputDtype, Metric]] = [
    *((dtype, metric) for dtype in ("float32", "float16", "int8") for metric in ("cosine", "ip", "l2")),  # type: ignore[misc]
    ("binary", "hamming"),
]
FORMS = ("text", "floats", "stored")


def _vectors(count: int, seed: int) -> NDArray[np.float32]:
    """Of different lengths, by which the three metrics differ."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, DIM)) * rng.uniform(0.5, 2.0, (count, 1))).astype(np.float32)


def _codes(vectors_ND: NDArray[np.float32], dtype: OutputDtype, scale: float | None) -> NDArray[Any]:
    column = to_arrow(vectors_ND, dtype, scale)
    codes: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors_ND), -1)
    return codes


def _meant(codes_ND: NDArray[Any], dtype: OutputDtype, scale: float | None) -> NDArray[np.float64]:
    """What stored numbers stand for; bits as 0 and 1."""
    if dtype == "binary":
        return np.unpackbits(codes_ND, axis=1).astype(np.float64)
    return codes_ND.astype(np.float64) * (scale if scale is not None else 1.0)


def _scores(queries_QD: NDArray[np.float64], documents_ND: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    if metric == "cosine":
        queries_QD = queries_QD / np.linalg.norm(queries_QD, axis=1, keepdims=True)
        documents_ND = documents_ND / np.linalg.norm(documents_ND, axis=1, keepdims=True)
    if metric in ("cosine", "ip"):
        return queries_QD @ documents_ND.T
    distances_QN: NDArray[np.float64] = ((queries_QD[:, None] - documents_ND[None]) ** 2).sum(axis=2)
    return distances_QN


def _check(found: NDArray[Any], ids: NDArray[np.int64], scores_QN: NDArray[np.float64], metric: Metric) -> None:
    order = np.sort(scores_QN, axis=1)
    best_QK = order[:, ::-1][:, :K] if metric in ("cosine", "ip") else order[:, :K]
    np.testing.assert_allclose(found, best_QK, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(np.take_along_axis(scores_QN, ids, 1), found, rtol=2e-4, atol=2e-4)


def _of_search(index: Index, given: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    table = index.search(given, K, settings=Settings(nprobe=1000, ef=1000))
    ids = np.array([int(doc.rsplit("-", 1)[-1]) for doc in table["doc_id"].to_pylist()]).reshape(-1, K)
    return table["score"].to_numpy().reshape(-1, K), ids


def _as_read(index: Index, folder: Path, column: Any, file_format: str) -> Any:
    """Ready vectors of a file, as a batch search reads and prepares them."""
    path = folder / f"queries.{file_format}"
    if file_format == "parquet":
        pq.write_table(pa.table({"id": [str(i) for i in range(len(column))], "v": column}), path)
    else:
        rows = [{"id": str(i), "v": row} for i, row in enumerate(column.to_pylist())]
        path.write_bytes(b"".join(orjson.dumps(row, default=float) + b"\n" for row in rows))
    read = list(read_query_vectors(Queries(path=str(path), id="id", vector="v"), index.identity.space))
    return np.concatenate([batch.vectors_QD for batch in read])


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(("dtype", "metric"), CASES)
def test_every_form_of_query_finds_what_comparing_all_finds(
    tmp_path: Path, dtype: OutputDtype, metric: Metric, shards: int
) -> None:
    documents_ND, queries_QD = _vectors(DOCUMENTS, 1), _vectors(QUERIES, 2)
    scale = calibrate_scale(documents_ND) if dtype == "int8" else None
    write_dataset(str(tmp_path / "e"), [("a.parquet", Documents.of(documents_ND))], dtype, 300)
    factory = "BFlat" if dtype == "binary" else "Flat"
    index = build_index(Location(str(tmp_path / "i")), Location(str(tmp_path / "e")), factory, metric, shards)
    stored_ND = _meant(_codes(documents_ND, dtype, scale), dtype, scale)
    codes_QD = _codes(queries_QD, dtype, scale)
    plain_QD = queries_QD.astype(np.float64) if dtype != "binary" else _meant(codes_QD, dtype, None)
    floats = pa.FixedSizeListArray.from_arrays(pa.array(queries_QD.reshape(-1)), DIM)
    stored = to_arrow(queries_QD, dtype, scale)
    for form in FORMS:
        meant_QD = _meant(codes_QD, dtype, scale) if form == "stored" else plain_QD
        scores_QN = _scores(meant_QD, stored_ND, metric)
        given = codes_QD if form == "stored" else queries_QD
        if form == "text":
            given = as_queries(queries_QD, index.identity.space)
        _check(*_of_search(index, given), scores_QN, metric)
        if form == "text":
            continue
        for file_format in ("parquet", "jsonl"):
            prepared_QD = _as_read(index, tmp_path, stored if form == "stored" else floats, file_format)
            found = index.find(prepared_QD, K, Settings())
            ids_QK = (found.ids_QK >> 40) * (DOCUMENTS // shards) + (found.ids_QK & ((1 << 40) - 1))
            _check(found.scores_QK, ids_QK, scores_QN, metric)


def test_codes_of_another_dataset_have_its_scale(tmp_path: Path) -> None:
    queries_QD, space = _vectors(3, 5), VectorSpace(DIM, "int8", 0.5, "ip")
    table = pa.table({"v": to_arrow(queries_QD, "int8", 0.05)})
    identity = b'{"dtype": "int8", "scale": 0.05}'
    pq.write_table(table.replace_schema_metadata({"embedfleet.dataset": identity}), tmp_path / "q.parquet")
    (read,) = read_query_vectors(Queries(path=str(tmp_path / "q.parquet"), vector="v"), space)
    np.testing.assert_allclose(read.vectors_QD, queries_QD, atol=0.026)


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        ("int8", np.full((1, DIM), 200)),
        ("binary", np.full((1, DIM // 8), 0.5)),
        ("binary", np.full((1, DIM // 8), 256)),
        ("binary", np.full((1, DIM), np.nan)),
        ("float32", np.array([["a"] * DIM])),
        ("float32", np.zeros((1, DIM + 1))),
    ],
)
def test_what_is_no_query_vector(dtype: OutputDtype, given: Any) -> None:
    metric: Metric = "hamming" if dtype == "binary" else "ip"
    with pytest.raises(InputError):
        VectorSpace.of(identity_of(DIM, dtype, 0.1), metric).queries(given, "the queries")


@pytest.mark.parametrize("factory", ["HNSW16", "HNSW16_SQ8", "IVF16,Flat", "Flat", "BHNSW16", "BIVF8"])
@pytest.mark.parametrize("lang", ["lang == 'en'", "year == 2003", "year == 2003 and lang == 'en'"])
def test_a_filter_keeps_the_recall_and_finds_k(tmp_path: Path, factory: str, lang: str) -> None:
    documents_ND, queries_QD = _vectors(3000, 3), _vectors(40, 4)
    is_binary = factory.startswith("B")
    dtype: OutputDtype = "binary" if is_binary else "float32"
    metric: Metric = "hamming" if is_binary else "l2"
    write_dataset(str(tmp_path / "e"), [("a.parquet", Documents.of(documents_ND))], dtype, 1500)
    index = build_index(Location(str(tmp_path / "i")), Location(str(tmp_path / "e")), factory, metric, 2)
    numbers = np.arange(3000)
    chosen = np.ones(3000, bool)
    chosen &= (numbers % 4 == 0) if "lang" in lang else chosen
    chosen &= (2000 + numbers % 25 == 2003) if "year" in lang else chosen
    meant = [_meant(_codes(v, dtype, None), dtype, None) for v in (queries_QD, documents_ND)]
    scores_QN = np.where(chosen, _scores(meant[0], meant[1], metric), np.inf)
    table = index.search(queries_QD, K, filter=lang, settings=Settings(nprobe=4, ef=32))
    assert table.num_rows == 40 * min(K, int(chosen.sum()))
    ids = np.array([int(doc.rsplit("-", 1)[-1]) for doc in table["doc_id"].to_pylist()]).reshape(40, K)
    assert chosen[ids].all()
    worst_Q1 = np.sort(scores_QN, axis=1)[:, K - 1 : K]
    exact = np.take_along_axis(scores_QN, ids, 1) <= worst_Q1 * (1.02 if "SQ8" in factory else 1 + 1e-6)
    assert exact.mean() > 0.97


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,SQ8,RFlat", "BIVF8"])
@pytest.mark.parametrize("num_queries", [1, 30])
def test_what_a_filter_selects_is_found_where_it_is_far_from_the_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, num_queries: int
) -> None:
    monkeypatch.setattr(group, "_FEW_SELECTED", 0)  # as if more were selected than are compared one by one
    is_binary = factory.startswith("B")
    documents_ND = _vectors(2000, 7)
    documents_ND[:, 0] = np.where(np.arange(2000) % 4 == 0, 30.0, -30.0)  # those with lang en lie by themselves
    if is_binary:
        documents_ND[:, : DIM // 2] = np.sign(documents_ND[:, :1]) * np.abs(documents_ND[:, : DIM // 2])
    queries_QD = documents_ND[1 : 4 * num_queries : 4].copy()
    dtype: OutputDtype = "binary" if is_binary else "float32"
    metric: Metric = "hamming" if is_binary else "l2"
    write_dataset(str(tmp_path / "e"), [("a.parquet", Documents.of(documents_ND))], dtype, 1500)
    index = build_index(Location(str(tmp_path / "i")), Location(str(tmp_path / "e")), factory, metric, 2)
    table = index.search(queries_QD, K, filter="lang == 'en'", settings=Settings(nprobe=1))
    assert table.num_rows == num_queries * K
    assert all(int(doc.rsplit("-", 1)[-1]) % 4 == 0 for doc in table["doc_id"].to_pylist())
