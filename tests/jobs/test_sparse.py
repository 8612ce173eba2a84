"""Dense and sparse vectors through the jobs, on a tiny checkpoint with BGE-M3's heads and on SPLADE's alone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch
import transformers
import yaml
from safetensors.torch import save_file

from jobs.embedding.identity import RECIPES
from operators.embedder.factory import load_embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.sparse_vectors import SparseVectors
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.index import open_index
from operators.index.fusion import Fusion
from operators.index.snapshot import read_index
from operators.index.vacuum import vacuum_index
from operators.storage import locate
from tests import checkpoints
from tests.jobs.running import documents, run_job, vectors_of, write_config, write_jsonl
from tests.jobs.test_index import index_config

HEADS: dict[str, dict[str, Any]] = {
    "both": {"pooling": "cls", "normalize": True, "sparse": {"head": "token_weights"}},
    "sparse": {"pooling": "none", "normalize": False, "sparse": {"head": "mlm", "top": 20}},
}
DOCUMENTS = documents(300)


def write_recipe(folder: Path, kind: str) -> Path:
    """A tiny checkpoint with its recipe; queries have a prompt of their own."""
    folder.mkdir()
    auto = transformers.AutoModelForMaskedLM if kind == "sparse" else transformers.AutoModel
    checkpoints.tiny_encoder(folder, kind="xlm-roberta", auto=auto)
    torch.manual_seed(3)
    save_file({"weight": torch.randn(1, 32), "bias": torch.ones(1)}, folder / "sparse_linear.safetensors")
    recipe = {"checkpoint": str(folder), "max_tokens": 64, "prompts": {"query": "find "}, **HEADS[kind]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module", params=["both", pytest.param("sparse", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """300 documents in 3 files, embedded."""
    folder = tmp_path_factory.mktemp(request.param)
    for number in range(3):
        rows = [{**row, "lang": "en" if i % 2 else "de"} for i, row in enumerate(DOCUMENTS[number::3])]
        write_jsonl(folder / "docs" / f"{number}.jsonl", rows)
    config = write_config(
        folder,
        write_recipe(folder / "model", request.param),
        source={"path": str(folder / "docs" / "*.jsonl"), "rows_per_fragment": 40},
        output={"keep": ["lang"]},
    )
    assert run_job("embed", config) == 0
    return folder


def embedded(folder: Path, texts: list[str], role: str) -> tuple[Any, SparseVectors]:
    """Dense and sparse vectors, by the embedder itself."""
    spec = embedder_spec(str(folder / "model" / "recipe.yaml"), EmbedderConfig(role=role, device="cpu"), RECIPES)
    vectors = load_embedder(spec, device="cpu")(Tokenizer(spec)(pa.array(texts)).input_ids)
    assert vectors.sparse is not None
    return vectors.values_ND, vectors.sparse


def test_columns_hold_the_embedders_vectors(folder: Path) -> None:
    table = vectors_of(folder)
    is_sparse_alone = folder.name.startswith("sparse")
    names = ["sparse_indices", "sparse_weights"] if is_sparse_alone else ["embedding", "sparse_indices"]
    assert table.schema.names[5:7] == names
    texts = {row["id"]: row["text"] for row in DOCUMENTS}
    dense_ND, sparse = embedded(folder, [texts[i] for i in table["doc_id"].to_pylist()], "document")
    stored = SparseVectors.from_table(table)
    np.testing.assert_allclose(stored.dense(400), sparse.dense(400), atol=1e-5)
    assert stored.lengths_N.sum() > 300
    if not is_sparse_alone:
        np.testing.assert_allclose(np.stack(table["embedding"].to_numpy(zero_copy_only=False)), dense_ND, atol=1e-5)


def test_verify_proves_sparse_vectors(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_job("verify", folder / "config.yaml") == 0
    assert "sparse over " in capsys.readouterr().out
    file = sorted((folder / "vectors" / "data").glob("*.parquet"))[0]
    whole = file.read_bytes()
    table = pq.read_table(file)
    at = table.schema.get_field_index("sparse_weights")
    values = [[-weight for weight in row] for row in table["sparse_weights"].to_pylist()]
    pq.write_table(table.set_column(at, table.field(at), pa.array(values, table.field(at).type)), file)
    assert run_job("verify", folder / "config.yaml") == 3
    assert "sparse weights are not finite and above 0" in capsys.readouterr().out
    file.write_bytes(whole)


def test_a_plan_counts_sparse_bytes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Within a third of what came out: entries are bounded by top, or by a text's tokens."""
    plan = write_config(tmp_path, folder / "model" / "recipe.yaml", source={"path": str(folder / "docs" / "*.jsonl")})
    assert run_job("plan", plan) == 0
    assert "bytes float32" in capsys.readouterr().out
    sizes = sum(file.stat().st_size for file in (folder / "vectors" / "data").glob("*.parquet"))
    planned = yaml.safe_load((tmp_path / "vectors" / "plan.json").read_text())["bytes_out"]["float32"]["value"]
    entries = SparseVectors.from_table(vectors_of(folder)).lengths_N.sum()
    assert planned > 4 * entries
    assert planned < 2 * sizes


def test_sparse_vectors_alone_have_no_dense_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "docs.jsonl", DOCUMENTS[:5])
    recipe = write_recipe(tmp_path / "model", "sparse")
    assert run_job("embed", write_config(tmp_path, recipe, output={"dtype": "int8"})) == 2
    assert "leave out output.dtype" in capsys.readouterr().err
    assert run_job("embed", write_config(tmp_path, recipe, embedder={"dims": 8})) == 2
    assert "leave out embedder.dims" in capsys.readouterr().err


QUERIES = [{"_id": f"q{i}", "text": row["text"]} for i, row in enumerate(DOCUMENTS[::10])]


def brute_force(folder: Path, mode: str, filter_lang: str | None = None) -> list[list[tuple[str, float]]]:
    """The five best documents of each query by the whole product of scipy's matrices."""
    table = vectors_of(folder)
    ids = table["doc_id"].to_pylist()
    allowed = np.array([filter_lang in (None, lang) for lang in table["lang"].to_pylist()])
    dense_QD, sparse = embedded(folder, [row["text"] for row in QUERIES], "query")
    scores = (
        scipy.sparse.csr_array(sparse.dense(400)) @ scipy.sparse.csr_array(SparseVectors.from_table(table).dense(400)).T
    )
    ranked = ranking(scores.todense(), ids, allowed)
    if mode == "dense":
        ranked = ranking(dense_QD @ np.stack(table["embedding"].to_numpy(zero_copy_only=False)).T, ids, allowed)
    return [row[:5] for row in ranked]


def ranking(scores_QN: Any, ids: list[str], allowed: Any) -> list[list[tuple[str, float]]]:
    ranked = []
    for scores_N in np.asarray(scores_QN):
        order = [i for i in np.argsort(-scores_N, kind="stable") if allowed[i] and scores_N[i] != 0]
        ranked.append([(ids[i], float(scores_N[i])) for i in order])
    return ranked


def searched(folder: Path, mode: str, filter: str | None = None) -> list[list[tuple[str, float]]]:
    """What the opened index finds for the queries."""
    dense_QD, sparse = embedded(folder, [row["text"] for row in QUERIES], "query")
    given = {"dense": (dense_QD, None), "sparse": (None, sparse), "hybrid": (dense_QD, sparse)}[mode]
    return by_query(open_index(str(folder / "index")).search(given[0], 5, filter, sparse=given[1]), range(len(QUERIES)))


def by_query(results: pa.Table, names: Iterable[Any]) -> list[list[tuple[str, float]]]:
    found: dict[Any, list[tuple[str, float]]] = {name: [] for name in names}
    for row in results.to_pylist():
        found[row[results.column_names[0]]].append((row["doc_id"], row["score"]))
    return list(found.values())


def assert_as_good(found: list[list[tuple[str, float]]], wanted: list[list[tuple[str, float]]]) -> None:
    """The same scores; documents with equal ones may stand for each other (the documents repeat themselves)."""
    assert [len(row) for row in found] == [len(row) for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose([s for _, s in one], [s for _, s in other], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def indexed(folder: Path) -> Path:
    """The index of the embeddings, in several shards."""
    assert run_job("index", index_config(folder, shards={"rows": 120}, recall={"queries": 20})) == 0
    return folder


def test_searches_are_those_of_the_whole_matrices(indexed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = read_index(locate(str(indexed / "index")))
    assert len(snapshot.shards) > 1
    assert all(shard.sparse is not None for shard in snapshot.shards)
    is_sparse_alone = indexed.name.startswith("sparse")
    assert (snapshot.trained is None) == is_sparse_alone
    for mode in ["sparse"] if is_sparse_alone else ["sparse", "dense"]:
        assert_as_good(searched(indexed, mode), brute_force(indexed, mode))
        assert_as_good(searched(indexed, mode, "lang == 'de'"), brute_force(indexed, mode, "de"))
    assert run_job("index", indexed / "index.yaml") == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fusion", [Fusion(), pytest.param(Fusion(method="weighted", alpha=0.3), marks=pytest.mark.slow)]
)
def test_a_batch_search_takes_all_that_the_index_has(indexed: Path, tmp_path: Path, fusion: Fusion) -> None:
    """Sparse, or both fused, of the recipe's vectors for queries."""
    is_sparse_alone = indexed.name.startswith("sparse")
    if is_sparse_alone and fusion.method == "weighted":
        pytest.skip("nothing to fuse")
    write_jsonl(tmp_path / "queries.jsonl", QUERIES)
    arguments = [f"queries={{path: {tmp_path}/queries.jsonl, id: _id}}", f"output.path={tmp_path}/found.parquet", "k=5"]
    chosen = f"fusion={{method: {fusion.method}, alpha: {fusion.alpha}}}"
    assert run_job("search", indexed / "index", *arguments, chosen) == 0
    batch = by_query(pq.read_table(tmp_path / "found.parquet"), [row["_id"] for row in QUERIES])
    dense_QD, sparse = embedded(indexed, [row["text"] for row in QUERIES], "query")
    index = open_index(str(indexed / "index"))
    alone = index.search(None if is_sparse_alone else dense_QD, 5, sparse=sparse, fusion=fusion)
    assert_as_good(batch, by_query(alone, range(len(QUERIES))))
    if is_sparse_alone:
        assert_as_good(batch, brute_force(indexed, "sparse"))


def test_one_query_prints_its_results(indexed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job("search", indexed / "index", f"query={DOCUMENTS[17]['text']}", "k=3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "1"
    assert lines[0].split()[2].startswith("doc-")


@pytest.mark.slow
def test_updates_and_deletions_are_followed(indexed: Path, tmp_path: Path) -> None:
    """A third of the documents lose rows, and get new texts and new documents: patched, then rebuilt and vacuumed."""
    folder = tmp_path / "copy"
    shutil.copytree(indexed / "docs", folder / "docs")
    shutil.copytree(indexed / "model", folder / "model")
    for name in ("config.yaml", "index.yaml", "model/recipe.yaml"):
        (folder / name).write_text((indexed / name).read_text().replace(str(indexed), str(folder)))
    assert run_job("embed", folder / "config.yaml") == 0
    assert run_job("index", folder / "index.yaml") == 0
    rows = [{**row, "lang": "en" if i % 2 else "de"} for i, row in enumerate(DOCUMENTS[1::3])][20:]
    rows = [{**row, "text": f"people world {row['text']}"} if i % 5 == 0 else row for i, row in enumerate(rows)]
    rows += [{"id": f"new-{i}", "text": f"hand part place {'life ' * i}", "lang": "de"} for i in range(10)]
    write_jsonl(folder / "docs" / "1.jsonl", rows)
    assert run_job("embed", folder / "config.yaml") == 0
    assert run_job("index", folder / "index.yaml", "update.mode=patch") == 0
    snapshot = read_index(locate(str(folder / "index")))
    assert any(shard.deletions for shard in snapshot.shards)
    assert snapshot.num_vectors == 290
    assert_as_good(searched(folder, "sparse"), brute_force(folder, "sparse"))
    write_jsonl(folder / "docs" / "2.jsonl", [{**row, "lang": "de"} for row in DOCUMENTS[2::3][:60]])
    assert run_job("embed", folder / "config.yaml") == 0
    assert run_job("index", folder / "index.yaml", "update.mode=rebuild") == 0
    assert vacuum_index(locate(str(folder / "index")), 1, time.time() + 60) > 0
    left = {file.name.split(".")[0] for file in (folder / "index" / "shards").glob("*.sparse.arrow")}
    assert left == {shard.key for shard in read_index(locate(str(folder / "index"))).shards}
    assert_as_good(searched(folder, "sparse"), brute_force(folder, "sparse"))


def test_configs_that_do_not_fit_the_vectors_are_refused(
    indexed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> str:
        assert run_job(*arguments) == 2
        return str(capsys.readouterr().err)

    index, output = indexed / "index.yaml", f"output.path={tmp_path}/other"
    vectors = f"queries={{path: {indexed}/vectors/data/*.parquet, id: doc_id, vector: embedding}}"
    ready = ["search", indexed / "index", vectors, f"output.path={tmp_path}/x.parquet"]
    if indexed.name.startswith("both"):
        assert "with sparse_dim 400" in refused("index", index, "sparse=false")
        assert "than sparse: queries.vector gives dense" in refused(*ready, "mode=sparse")
        return
    for argument in ("sparse=false", "spec=Flat", "metric=cosine", "shards.by=list"):
        assert f"leave out {argument.split('=')[0]}: the embeddings" in refused("index", index, output, argument)
    assert "give queries as text" in refused(*ready)
    assert "has only sparse vectors" in refused("search", indexed / "index", "query=people", "mode=hybrid")
