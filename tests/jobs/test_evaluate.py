"""The job evaluate, with a tiny model, against sentence-transformers' own evaluators on the same checkpoint."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)

from operators.evaluation.beir import document_text
from tests.evaluation_sets import write_beir, write_sts
from tests.jobs.running import run_job, write_config
from tests.jobs.test_index import index_config

pytest.importorskip("mteb")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small evaluation sets."""
    folder = tmp_path_factory.mktemp("sets")
    write_beir(folder / "beir")
    write_sts(folder / "sts.tsv")
    return folder


def evaluate_config(folder: Path, **sections: Any) -> Path:
    """A config file whose output is `folder/scores.json`."""
    config = {"output": {"path": str(folder / "scores.json")}, "compute": {"workers": [1, 1]}, **sections}
    path = folder / "evaluate.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def scores(folder: Path) -> Any:
    """What the job wrote."""
    return json.loads((folder / "scores.json").read_text())


def test_scores_are_those_of_sentence_transformers(
    sets: Path, tmp_path: Path, tiny_model: Path, local_ray: None
) -> None:
    tasks = [
        {"name": "sts", "kind": "sts", "path": str(sets / "sts.tsv")},
        {"name": "beir", "kind": "retrieval", "path": str(sets / "beir"), "k": [1, 3, 10, 100]},
    ]
    assert run_job("evaluate", evaluate_config(tmp_path, model=str(tiny_model), tasks=tasks)) == 0
    found = scores(tmp_path)
    reference = SentenceTransformer(str(tiny_model), device="cpu")

    rows = [line.split("\t") for line in (sets / "sts.tsv").read_text().splitlines()[1:]]
    one, other, gold = zip(*rows, strict=True)
    sts = EmbeddingSimilarityEvaluator(list(one), list(other), [float(g) for g in gold], main_similarity="cosine")
    expected = sts(reference)
    assert found["sts"]["cosine_spearman"] == pytest.approx(expected["spearman_cosine"], abs=2e-5)
    assert found["sts"]["cosine_pearson"] == pytest.approx(expected["pearson_cosine"], abs=2e-5)

    with gzip.open(sets / "beir" / "corpus.jsonl.gz", "rt") as stream:
        corpus = {row["_id"]: document_text(row["title"], row["text"]) for row in map(json.loads, stream)}
    queries = {
        row["_id"]: row["text"] for row in map(json.loads, (sets / "beir/queries.jsonl").read_text().splitlines())
    }
    relevant: dict[str, set[str]] = {}
    for line in (sets / "beir/qrels.tsv").read_text().splitlines()[1:]:
        query, doc, _ = line.split("\t")
        relevant.setdefault(query, set()).add(doc)
    retrieval = InformationRetrievalEvaluator(
        queries, corpus, relevant, mrr_at_k=[10], ndcg_at_k=[10], map_at_k=[100], precision_recall_at_k=[10]
    )(reference)
    # Its nDCG knows no grades, so that one is compared with MTEB's, in test_mteb_model
    for name, theirs in (("mrr_at_10", "mrr@10"), ("recall_at_10", "recall@10"), ("precision_at_10", "precision@10")):
        assert found["beir"][name] == pytest.approx(retrieval[f"cosine_{theirs}"], abs=1e-6), name


def test_reports_stand_beside_the_scores(sets: Path, tmp_path: Path, tiny_model: Path, local_ray: None) -> None:
    """Two models and BM25 side by side: {model: {task: ...}}, intervals, tests and costs."""
    tasks = [
        {"name": "sts", "kind": "sts", "path": str(sets / "sts.tsv")},
        {"name": "beir", "kind": "retrieval", "path": str(sets / "beir")},
    ]
    models = [
        {"name": "whole", "model": str(tiny_model)},
        {"name": "half", "model": str(tiny_model), "embedder": {"dims": 16}},
        {"name": "words", "model": "bm25"},
    ]
    hardware = {"name": "laptop", "price_per_hour": 0.5}
    config = evaluate_config(tmp_path, models=models, tasks=tasks, hardware=hardware, resampling={"draws": 100})
    assert run_job("evaluate", config) == 0
    found = scores(tmp_path)
    assert list(found) == ["whole", "half", "words"]
    assert list(found["words"]) == ["beir"], "BM25 has no vectors to correlate"
    report = json.loads((tmp_path / "scores.report.json").read_text())
    whole = report["models"][0]
    assert whole["dim"] == 32
    assert whole["bytes_per_vector"] == {"float32": 128, "float16": 64, "int8": 32, "binary": 4}
    interval = whole["tasks"]["beir"]["intervals"]["ndcg_at_10"]
    assert interval["low"] <= found["whole"]["beir"]["ndcg_at_10"] <= interval["high"]
    assert "1 of 24 queries are not judged" in whole["tasks"]["beir"]["notes"][0]
    expected = 1e6 * whole["tokens_per_document"] / whole["tokens_per_second"] / 3600 * 0.5 * whole["workers"]
    assert whole["usd_per_million_documents"] == pytest.approx(expected)
    compared = {(c["model"], c["task"], c["metric"]): c["difference"] for c in report["comparisons"]}
    gap = found["half"]["sts"]["cosine_spearman"] - found["whole"]["sts"]["cosine_spearman"]
    assert compared["half", "sts", "cosine_spearman"]["value"] == pytest.approx(gap)
    assert ("words", "beir", "ndcg_at_10") in compared
    card = (tmp_path / "scores.md").read_text()
    assert "| beir | ndcg_at_10 |" in card
    assert "| cost of a million documents | $" in card
    page = (tmp_path / "scores.html").read_text()
    assert page.count("<svg") >= 2
    assert "Against whole" in page


def test_a_missed_gate_is_exit_code_3(
    sets: Path, tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"name": "beir", "kind": "retrieval", "path": str(sets / "beir"), "at_least": {"ndcg_at_10": 0.9999}}
    assert run_job("evaluate", evaluate_config(tmp_path, model="bm25", tasks=[task])) == 3
    assert "at_least wants 0.9999" in capsys.readouterr().err
    assert scores(tmp_path)["beir"]["ndcg_at_10"] < 0.9999, "the scores are in place"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": [{"name": "a", "kind": "sts", "path": "x.tsv", "colour": 1}]}, "tasks.0.colour: unknown key"),
        ({"tasks": [{"name": "a", "kind": "sorting", "path": "x.tsv"}]}, "tasks.0.kind: Input should be 'retrieval'"),
        ({"tasks": [{"name": "a", "kind": "sts", "path": "x.tsv", "index": "i"}]}, "no such key, only retrieval"),
        ({"tasks": [{"name": "a", "kind": "sts", "path": "x.tsv"}] * 2}, "'a' comes twice"),
        ({"tasks": [{"name": "a", "kind": "sts", "path": "nowhere.tsv"}]}, "there is no file"),
        (
            {"tasks": [{"name": "a", "kind": "sts", "path": "x.tsv", "at_least": {"ndcg_at_10": 1}}]},
            "unknown metric 'ndcg_at_10'; expected one of: cosine_spearman, cosine_pearson",
        ),
        ({"models": [{"name": "b", "model": "bm25"}]}, "either model (one) or models"),
        ({"model": "bm25"}, "give it a retrieval task"),
        ({"embedder": {"prompt": "x"}}, "set role, prompt and query_prompt in the tasks"),
        ({"output": {"path": "scores.txt"}}, "output.path"),
    ],
)
def test_wrong_configs_are_refused_before_anything_runs(
    tmp_path: Path, tiny_model: Path, changes: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [{"name": "a", "kind": "sts", "path": "x.tsv"}]
    config = evaluate_config(tmp_path, **{"model": str(tiny_model), "tasks": tasks, **changes})
    assert run_job("evaluate", config) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.glob("scores*"))


@pytest.mark.slow
def test_a_built_index_gives_the_exact_scores(
    sets: Path, tmp_path: Path, tiny_model: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flat index over all vectors is exact; an index of another model is refused."""
    corpus = tmp_path / "corpus.jsonl"
    with gzip.open(sets / "beir" / "corpus.jsonl.gz", "rt") as stream:
        rows = [{**row, "whole": document_text(row["title"], row["text"])} for row in map(json.loads, stream)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(corpus), "id": "_id", "text": "whole"}
    assert run_job("embed", write_config(tmp_path, tiny_model, source=source)) == 0
    index = index_config(tmp_path, spec="Flat", shards={"rows": 50})
    assert run_job("index", index) == 0
    exact = {"name": "exact", "kind": "retrieval", "path": str(sets / "beir"), "k": [1, 10, 100]}
    tasks = [exact, {**exact, "name": "index", "index": str(tmp_path / "index")}]
    assert run_job("evaluate", evaluate_config(tmp_path, model=str(tiny_model), tasks=tasks)) == 0
    found = scores(tmp_path)
    assert found["index"] == pytest.approx(found["exact"], abs=1e-6)
    other = {"model": str(tiny_model), "embedder": {"max_tokens": 16}}
    assert run_job("evaluate", evaluate_config(tmp_path, **other, tasks=tasks[1:])) == 2
    assert "give the index of the model under test" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The real MiniLM on the sets that come with the project, with one text of the sets among the training pairs."""
    output = f"output.path={tmp_path / 'scores.json'}"
    assert run_job("evaluate", "configs/evaluate/quickstart.yaml", output, "compute.workers=[1,1]") == 0
    found = scores(tmp_path)
    assert found["minilm"]["questions"]["ndcg_at_10"] > found["bm25"]["questions"]["ndcg_at_10"]
    assert "paraphrases: 1 texts are in the training pairs, 0 more overlap" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["tiny", "bm25"])
def test_a_broken_document_stops_the_job_with_its_row(
    sets: Path, tmp_path: Path, tiny_model: Path, local_ray: None, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The corpus is read on the cluster, long after the other files."""
    folder = write_beir(tmp_path / "beir")
    with gzip.open(folder / "corpus.jsonl.gz", "at") as stream:
        stream.write('{"_id": "broken", "text": 3}\n')
    task = {"name": "beir", "kind": "retrieval", "path": str(folder)}
    named = str(tiny_model) if model == "tiny" else model
    assert run_job("evaluate", evaluate_config(tmp_path, model=named, tasks=[task])) == 2
    assert "error: mend row 121 of" in capsys.readouterr().err
    assert not (tmp_path / "scores.json").exists()
