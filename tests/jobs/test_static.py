"""Static embedders through every job: distil, plan, embed, verify, index, search."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from tests.checkpoints import WORDS
from tests.evaluation_sets import write_beir
from tests.jobs.running import documents, rejected_of, run_job, vectors_of, write_config, write_jsonl
from tests.static_embedders import DIM, word_table, write_recipe, write_vectors


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("without_ray")
def test_word_vectors_from_plan_to_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*documents(60), {"id": "unknown", "text": "zebra okapi"}, {"id": "half", "text": "zebra people"}]
    write_jsonl(tmp_path / "docs.jsonl", rows)
    recipe = write_recipe(tmp_path, write_vectors(tmp_path / "glove.txt", "glove"))
    gates = {"max_rejected_fraction": 0.1}
    hardware = {"name": "this machine", "peak_tflops": 1.0, "price_per_hour": 1.0, "tokens_per_second": 1e6}
    config = write_config(tmp_path, recipe, source={"rows_per_fragment": 25}, gates=gates, hardware=hardware)
    assert run_job("plan", config) == 0
    plan: dict[str, Any] = json.loads((tmp_path / "vectors" / "plan.json").read_text())
    assert (plan["padding_share"], plan["flops_per_token"]) == (None, DIM)
    assert run_job("embed", config) == 0
    table = vectors_of(tmp_path)
    assert rejected_of(tmp_path) == {"unknown": "non_finite_vector"}
    vector_of = dict(zip(WORDS, word_table(), strict=True))
    texts = {row["id"]: row["text"] for row in rows}
    expected = [
        np.mean([vector_of[word] for word in texts[doc_id].split() if word in vector_of], axis=0)
        for doc_id in table["doc_id"].to_pylist()
    ]
    ours = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(ours, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    counts = json.loads((tmp_path / "vectors" / "report.json").read_text())["counts"]
    assert (counts["unknown_tokens"], counts["padding_tokens"]) == (3, 0)
    assert "3 words" in capsys.readouterr().out
    assert run_job("verify", config) == 0
    index = tmp_path / "index.yaml"
    index.write_text(
        yaml.safe_dump(
            {"embeddings": str(tmp_path / "vectors"), "output": {"path": str(tmp_path / "i")}, "spec": "Flat"}
        )
    )
    assert run_job("index", index) == 0
    capsys.readouterr()
    assert run_job("search", tmp_path / "i", f"query={texts['doc-5']}", "k=1") == 0
    assert "doc-5" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_distilled_model_embeds_as_sentence_transformers(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    rows = documents(30)
    write_jsonl(tmp_path / "docs.jsonl", rows)
    distil = tmp_path / "distil.yaml"
    distil.write_text(
        yaml.safe_dump({"model": str(tiny_model), "dims": 8, "output": {"path": str(tmp_path / "static")}})
    )
    assert run_job("distill-static", distil) == 0
    assert f"model: {tmp_path / 'static'}" in capsys.readouterr().out
    assert run_job("distill-static", distil) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run_job("distill-static", distil, "dims=9") == 2
    assert "set output.path to another folder" in capsys.readouterr().err
    assert run_job("distill-static", distil, "exclude=(") == 2
    assert run_job("embed", write_config(tmp_path, tmp_path / "static")) == 0
    table = vectors_of(tmp_path)
    texts = {row["id"]: row["text"] for row in rows}
    expected = SentenceTransformer(str(tmp_path / "static"), device="cpu").encode(
        [texts[doc_id] for doc_id in table["doc_id"].to_pylist()]
    )
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy(zero_copy_only=False)), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_document_without_a_known_word_is_no_fault_of_an_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("mteb")
    folder = write_beir(tmp_path / "beir")
    with gzip.open(folder / "corpus.jsonl.gz", "at") as stream:
        stream.write(json.dumps({"_id": "unknown", "title": "", "text": "zebra okapi"}) + "\n")
    recipe = write_recipe(tmp_path, write_vectors(tmp_path / "glove.txt", "glove"))
    tasks = [{"name": "beir", "kind": "retrieval", "path": str(folder)}]
    config = tmp_path / "evaluate.yaml"
    output = {"path": str(tmp_path / "scores.json")}
    config.write_text(
        yaml.safe_dump({"model": recipe, "tasks": tasks, "output": output, "compute": {"workers": [1, 1]}})
    )
    assert run_job("evaluate", config) == 0

    def unit_mean(text: str) -> NDArray[np.float64]:
        known = [vector_of[word] for word in text.split() if word in vector_of] or [np.zeros(DIM)]
        mean_D = np.mean(known, axis=0)
        return np.asarray(mean_D / (np.linalg.norm(mean_D) or 1.0))

    vector_of = dict(zip(WORDS, word_table().astype(np.float64), strict=True))
    with gzip.open(folder / "corpus.jsonl.gz", "rt") as stream:
        corpus = {row["_id"]: unit_mean(f"{row['title']} {row['text']}") for row in map(json.loads, stream)}
    relevant: dict[str, set[str]] = {}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        relevant.setdefault(line.split("\t")[0], set()).add(line.split("\t")[1])
    recalls = []
    for row in map(json.loads, (folder / "queries.jsonl").read_text().splitlines()):
        if row["_id"] in relevant:
            nearest = sorted(corpus, key=lambda doc: -float(corpus[doc] @ unit_mean(row["text"])))[:10]
            recalls.append(len(relevant[row["_id"]] & set(nearest)) / len(relevant[row["_id"]]))
    found = json.loads((tmp_path / "scores.json").read_text())["beir"]["recall_at_10"]
    assert found == pytest.approx(np.mean(recalls), abs=1e-6)


def test_a_wrong_file_stops_the_job_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "docs.jsonl", documents(3))
    vectors = tmp_path / "glove.txt"
    vectors.write_text("the 1 2\nof 1\n")
    assert run_job("embed", write_config(tmp_path, write_recipe(tmp_path, vectors))) == 2
    assert "glove.txt line 2 has another number of dims than the 2 before" in capsys.readouterr().err
    assert not (tmp_path / "vectors").exists()
