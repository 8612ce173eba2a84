"""The embed job with late chunking, from plan to search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests import static_embedders
from tests.jobs.running import run_job, snapshot_of, vectors_of, write_config, write_jsonl

CHUNKING = {"tokens": 12, "late": True, "window_overlap": 16}


def long_documents(num: int) -> list[dict[str, Any]]:
    """Documents of 4 to 300 words, most of them longer than a window of the tiny model."""
    words = ("time", "people", "year", "way", "day", "man", "thing", "world", "life", "hand", "part")
    lengths = [4 + 41 * i % 296 for i in range(num)]
    texts = (" ".join(words[(3 * i + j * j) % len(words)] for j in range(n)) for i, n in enumerate(lengths))
    return [{"id": f"doc-{i:02d}", "text": text} for i, text in enumerate(texts)]


@pytest.mark.usefixtures("local_ray")
def test_long_documents_are_embedded_planned_verified_and_found(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = long_documents(24)
    write_jsonl(tmp_path / "docs.jsonl", rows)
    config = write_config(tmp_path, tiny_model, source={"rows_per_fragment": 10}, chunking=CHUNKING)
    assert run_job("plan", config) == 0
    assert run_job("embed", config) == 0
    assert run_job("verify", config, "verify.min_cosine=0.99999") == 0
    table = vectors_of(tmp_path)
    texts = {row["id"]: row["text"] for row in rows}
    assert set(table["doc_id"].to_pylist()) == set(texts)
    assert max(table["num_tokens"].to_pylist()) <= 12
    assert not any(table["truncated"].to_pylist())
    _check_a_document_of_one_window(tiny_model, table, texts)

    report = json.loads((tmp_path / "vectors" / "report.json").read_text())
    read, own = report["counts"]["tokens"], sum(table["num_tokens"].to_pylist())
    assert own < read < 1.7 * own
    assert sum(record.tokens for record in snapshot_of(tmp_path).records) == read
    assert report["counts"]["lost_tokens"] == 0
    planned = {row["quantity"]: row for row in report["plan_against_actual"]}
    assert planned["tokens"]["planned"]["value"] == pytest.approx(read)
    assert planned["chunks"]["planned"]["value"] == pytest.approx(table.num_rows)

    index = tmp_path / "index.yaml"
    index.write_text(json.dumps({"embeddings": str(tmp_path / "vectors"), "output": {"path": str(tmp_path / "index")}}))
    assert run_job("index", index) == 0
    capsys.readouterr()
    assert run_job("search", tmp_path / "index", "query=time people year", "k=3") == 0
    assert "doc-" in capsys.readouterr().out

    assert run_job("embed", write_config(tmp_path, tiny_model, chunking={"tokens": 12})) == 2  # another dataset


def _check_a_document_of_one_window(model_folder: Path, table: Any, texts: dict[str, str]) -> None:
    """The stored vectors of a document that fits, made again with transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    model = transformers.AutoModel.from_pretrained(model_folder).eval()
    doc_id = next(i for i, text in sorted(texts.items()) if 30 < len(text.split()) < 60)
    encoded = tokenizer(texts[doc_id], return_offsets_mapping=True)
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([encoded["input_ids"]])).last_hidden_state[0].numpy()
    own = [row for row in table.to_pylist() if row["doc_id"] == doc_id]
    assert len(own) > 2
    for row in own:
        inside = [
            i
            for i, (start, end) in enumerate(encoded["offset_mapping"])
            if end > start and start < row["char_end"] and end > row["char_start"]
        ]
        assert len(inside) == row["num_tokens"]
        expected = states[inside].mean(axis=0)
        np.testing.assert_allclose(row["embedding"], expected / np.linalg.norm(expected), atol=1e-5)


def test_models_without_late_chunks_stop_the_job(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "docs.jsonl", long_documents(3))
    recipe = tmp_path / "cls.yaml"
    recipe.write_text(
        json.dumps({"checkpoint": str(tiny_model), "pooling": "cls", "normalize": True, "max_tokens": 64})
    )
    vectors = static_embedders.write_vectors(tmp_path / "glove.txt", "text")
    static = static_embedders.write_recipe(tmp_path, vectors)
    for model, fault in ((recipe, "pooling cls, not mean"), (static, "of kind static")):
        for job in ("plan", "embed"):
            assert run_job(job, write_config(tmp_path, model, chunking=CHUNKING)) == 2
            out, err = capsys.readouterr()
            assert fault in out + err
    assert run_job("plan", write_config(tmp_path, tiny_model, chunking={**CHUNKING, "window_overlap": 60})) == 2
    assert "window_overlap to 31 or less" in "".join(capsys.readouterr())
    assert not list(tmp_path.glob("vectors/data/*"))
