"""From texts to answers: embed, index, search with texts, one and many, and explain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.embedding.queries import QueryEmbedder, document_config, query_spec
from operators.index import open_index
from operators.storage import locate
from operators.store.dataset import read_identity
from tests.jobs.running import documents, run_job, vectors_of, write_config, write_jsonl
from tests.jobs.test_index import index_config

QUERIES = [{"_id": f"q{i}", "text": row["text"]} for i, row in enumerate(documents(300)[::3])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, local_ray: None) -> Path:
    """300 documents, embedded as float16 with chunks, and indexed."""
    folder = tmp_path_factory.mktemp("texts")
    write_jsonl(
        folder / "docs.jsonl", [{**row, "lang": "en" if i % 2 else "de"} for i, row in enumerate(documents(300))]
    )
    config = write_config(
        folder, tiny_model, output={"dtype": "float16", "keep": ["lang"]}, source={"rows_per_fragment": 50}
    )
    assert run_job("embed", config) == 0
    assert run_job("index", index_config(folder, spec="IVF4,Flat", shards={"rows": 120})) == 0
    return folder


def test_many_texts_are_embedded_and_searched(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*QUERIES, {"_id": "none", "text": None}, {"_id": "last", "text": "people time"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    arguments = [f"queries={{path: {tmp_path}/a.jsonl, id: _id}}", f"output.path={tmp_path}/found.parquet", "k=3"]
    assert run_job("search", folder / "index", *arguments, "nprobe=4", "columns=[lang]") == 0
    told = capsys.readouterr().out
    assert "101 queries" in told
    assert "1 queries could not be embedded" in told
    table = pq.read_table(tmp_path / "found.parquet")
    assert table["query_id"].to_pylist() == [r["_id"] for r in rows if r["text"] is not None for _ in range(3)]
    rejected = pq.read_table(tmp_path / "found.parquet.rejected.parquet").to_pylist()
    assert [(row["doc_id"], row["reason"]) for row in rejected] == [("none", "null_text")]
    expected = brute_force(folder, [str(row["text"]) for row in rows if row["text"] is not None])
    np.testing.assert_allclose(table["score"].to_numpy().reshape(-1, 3), expected, atol=2e-3)
    by_id = {row["id"]: row["text"] for row in documents(300)}
    best = table.filter(np.asarray(table["rank"]) == 1).to_pylist()
    asked = {row["_id"]: row["text"] for row in rows}
    own = sum(by_id[row["doc_id"]] == asked[row["query_id"]] for row in best)
    assert own == 100, "documents with the very text of a query come first"


def brute_force(folder: Path, texts: list[str]) -> np.ndarray:  # type: ignore[type-arg]
    """The three best cosines by numpy."""
    dataset = locate(str(folder / "vectors"))
    identity = read_identity(dataset)
    assert identity is not None
    index = open_index(str(folder / "index"))
    queries = QueryEmbedder(query_spec(dataset, identity.fingerprint), index.identity.space)(texts)
    stored = vectors_of(folder)["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, identity.dim)
    values = stored.astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return -np.sort(-queries @ values.T, axis=1)[:, :3]


@pytest.mark.slow
def test_a_stopped_search_goes_on(folder: Path, tmp_path: Path) -> None:
    """Parts that are there already are not searched again."""
    write_jsonl(tmp_path / "a.jsonl", QUERIES)
    arguments = [f"queries={{path: {tmp_path}/a.jsonl, id: _id}}", f"output.path={tmp_path}/found.parquet", "k=3"]
    assert run_job("search", folder / "index", *arguments) == 0
    first = pq.read_table(tmp_path / "found.parquet")
    assert not (tmp_path / "found.parquet.parts").exists()
    (tmp_path / "found.parquet").unlink()
    assert run_job("search", folder / "index", *arguments) == 0
    assert pq.read_table(tmp_path / "found.parquet").equals(first)


def test_one_text_prints_a_table_with_texts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = documents(300)[17]["text"]
    assert run_job("search", folder / "index", f"query={text}", "k=2", "nprobe=4", "columns=[lang]") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["1", "1.0000"]
    assert text[:40] in lines[1]
    assert "lang " in lines[0]
    assert run_job("search", folder / "index", "query=x", "filter=lang == 'fr'") == 0
    assert "no document matches" in capsys.readouterr().out


def test_explain_walks_back_to_the_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job("explain", folder / "index", "doc_id=doc-123") == 0
    told = capsys.readouterr().out
    assert "docs.jsonl, row" in told
    assert documents(300)[123]["text"][:60] in told
    assert "pooling 'mean'" in told
    assert "vectors/data/" in told


def test_another_model_is_refused(
    folder: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The documents' recipe on this machine must be what embedded them."""
    shutil.copytree(folder / "vectors", tmp_path / "vectors")
    stored = (tmp_path / "vectors" / "config.yaml").read_text()
    (tmp_path / "vectors" / "config.yaml").write_text(stored.replace("max_tokens: null", "max_tokens: 9"))
    shutil.copytree(folder / "index", tmp_path / "index")
    identity = tmp_path / "index" / "snapshots" / "00000001.json"
    content = json.loads(identity.read_text())
    content["identity"]["embeddings"] = str(tmp_path / "vectors")
    identity.write_text(json.dumps(content))
    assert run_job("search", tmp_path / "index", "query=people") == 2
    assert "use the model that embedded the documents" in capsys.readouterr().err


def test_recall_is_measured_with_real_texts(folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "questions.jsonl", QUERIES)
    config = index_config(
        tmp_path,
        embeddings=str(folder / "vectors"),
        spec="IVF4,SQ8",
        recall_target=0.5,
        queries={"path": str(tmp_path / "questions.jsonl"), "id": "_id"},
    )
    assert run_job("index", config) == 0
    recall = open_index(str(tmp_path / "index")).snapshot.recall
    assert recall is not None
    assert recall.source.endswith("questions.jsonl")
    assert recall.queries == 100


def test_a_datasets_own_config_cannot_switch_on_code(folder: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "vectors"
    shutil.copytree(folder / "vectors", dataset)
    stored = yaml.safe_load((dataset / "config.yaml").read_text())
    stored["config"]["embedder"]["trust_remote_code"] = True
    (dataset / "config.yaml").write_text(yaml.safe_dump(stored))
    place = locate(str(dataset))
    identity = read_identity(place)
    assert identity is not None
    assert not document_config(place).embedder.trust_remote_code
    assert not query_spec(place, identity.fingerprint).recipe.trust_remote_code
    assert query_spec(place, identity.fingerprint, trust_remote_code=True).recipe.trust_remote_code
