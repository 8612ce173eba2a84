"""Dense and sparse vectors through the jobs, on a tiny checkpoint with BGE-M3's heads and on SPLADE's alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml
from safetensors.torch import save_file

from jobs.identity import RECIPES
from operators.embedder.choice import load_embedder
from operators.embedder.recipe import EmbedderConfig
from operators.embedder.sparse.vectors import SparseVectors
from operators.embedder.spec import embedder_spec
from operators.embedder.tokenizing import Tokenizer
from tests import checkpoints
from tests.jobs.running import documents, run_job, vectors_of, write_config, write_jsonl

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


@pytest.fixture(scope="module", params=["both", "sparse"])
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
