"""Every kind of task against mteb itself: the same texts, the same vectors, through our mteb plug-in."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from operators.evaluation.encoding import Prompted
from operators.evaluation.mteb_model import MtebModel
from operators.evaluation.scoring import read_task, score_task
from operators.evaluation.tasks import Task
from tests.evaluation_sets import sentence, write_beir, write_csv, write_labelled, write_sts
from tests.operators.evaluation.local_encoder import WordEncoder

pytest.importorskip("mteb")

from mteb.models.models_protocols import EncoderProtocol, SearchProtocol

from tests import mteb_tasks


def ours(task: Task) -> dict[str, float]:
    """Our scores of a task."""
    return dict(score_task(task, read_task(task), WordEncoder()).metrics)


def theirs(task: Any, prompts: dict[str, str] | None = None) -> dict[str, Any]:
    """mteb's scores of a task, by the same encoder."""
    return mteb_tasks.mteb_scores(MtebModel(WordEncoder(), _Spec(), prompts), task)  # type: ignore[arg-type]


class _Spec:
    """What mteb shows of a model."""

    model, fingerprint, dim = "words", "0" * 64, 24

    class recipe:
        max_tokens = 512
        similarity = "cosine"
        prompts: ClassVar[dict[str, str]] = {}


def beir_rows(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]], dict[str, dict[str, int]]]:
    """A BEIR folder as mteb wants it."""
    with gzip.open(folder / "corpus.jsonl.gz", "rt") as stream:
        corpus = [{**row, "id": row.pop("_id")} for row in map(json.loads, stream)]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query, doc, grade = line.split("\t")
        qrels.setdefault(query, {})[doc] = int(grade)
    return corpus, [{"id": row["_id"], "text": row["text"]} for row in queries], qrels


def labelled_rows(path: Path) -> dict[str, list[str]]:
    """A CSV of texts and labels."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {"text": [row["text"] for row in rows], "label": [row["label"] for row in rows]}


def test_the_plug_in_has_mtebs_protocols() -> None:
    model = MtebModel(WordEncoder(), _Spec())  # type: ignore[arg-type]
    assert isinstance(model, EncoderProtocol)
    assert isinstance(model, SearchProtocol)
    assert model.mteb_model_meta.name == "embedfleet/words"


def test_sts_is_mtebs(tmp_path: Path) -> None:
    path = write_sts(tmp_path / "sts.tsv")
    one, other, score = zip(*[line.split("\t") for line in path.read_text().splitlines()[1:]], strict=True)
    expected = theirs(mteb_tasks.sts_task(list(one), list(other), [float(s) for s in score]))
    found = ours(Task(name="t", kind="sts", path=str(path)))
    assert set(found) == {"cosine_spearman", "cosine_pearson"}
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-6)


@pytest.mark.parametrize("prompt", [None, "find the topic "])
def test_retrieval_is_mtebs(tmp_path: Path, prompt: str | None) -> None:
    folder = write_beir(tmp_path)
    task = Task(name="t", kind="retrieval", path=str(folder), query_prompt=prompt)
    prompts = {"Retrieval-query": prompt} if prompt else None
    expected = theirs(mteb_tasks.retrieval_task(*beir_rows(folder)), prompts)
    found = ours(task)
    assert 0.2 < found["ndcg_at_10"] < 0.99
    assert found == pytest.approx({name: expected[name] for name in found}, abs=6e-6)


def test_reranking_is_mtebs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for topic in range(30):
        positives = [sentence(rng, topic % 8, 3) for _ in range(2)]
        negatives = [sentence(rng, int(rng.integers(8)), 3) for _ in range(10)]
        rows.append({"query": sentence(rng, topic % 8, 3), "positive": positives, "negative": negatives})
    lines = [*map(json.dumps, rows), json.dumps({"query": "none", "positive": [], "negative": ["x"]})]
    (tmp_path / "rerank.jsonl").write_text("\n".join(lines))
    task = Task(name="t", kind="reranking", path=str(tmp_path / "rerank.jsonl"))
    data = read_task(task)
    assert data.notes == ("1 queries without positives or negatives were left out",)  # type: ignore[union-attr]
    corpus, qrels = [], {}
    for number, documents in enumerate(data.documents):  # type: ignore[union-attr]
        corpus += [{"id": name, "title": "", "text": text} for name, text, _ in documents]
        qrels[f"query{number}"] = {name: grade for name, _, grade in documents}
    queries = [{"id": f"query{i}", "text": row["query"]} for i, row in enumerate(rows)]
    candidates = {query: list(judged) for query, judged in qrels.items()}
    expected = theirs(mteb_tasks.retrieval_task(corpus, queries, qrels, candidates))
    found = ours(task)
    assert found == pytest.approx({name: expected[name] for name in found}, abs=6e-6)


def test_pairs_are_mtebs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    topics = rng.integers(0, 8, (200, 2))
    one, other = ([sentence(rng, int(topic), 3) for topic in column] for column in topics.T)
    labels = (topics[:, 0] == topics[:, 1]).astype(int).tolist()
    rows = list(zip(one, other, labels, strict=True))
    path = write_csv(tmp_path / "pairs.csv", ("sentence1", "sentence2", "label"), rows)
    expected = theirs(mteb_tasks.pair_task(one, other, labels))
    found = ours(Task(name="t", kind="pairs", path=str(path)))
    assert found == pytest.approx({name: expected[f"cosine_{name}"] for name in found}, abs=1e-6)


@pytest.mark.parametrize("num_labels", [2, 8])
def test_classification_is_mtebs(tmp_path: Path, num_labels: int) -> None:
    train = write_labelled(tmp_path / "train.csv", 150, seed=1, labels=num_labels)
    test = write_labelled(tmp_path / "test.csv", 90, seed=2, labels=num_labels)
    rows = [labelled_rows(path) for path in (train, test)]
    for part in rows:  # mteb's average precision wants numbers
        part["label"] = [int(label.split()[1]) for label in part["label"]]  # type: ignore[misc]
    expected = theirs(mteb_tasks.classification_task(*rows))
    found = ours(Task(name="t", kind="classification", path=str(tmp_path)))
    assert ("ap" in found) == (num_labels == 2)
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-6)


def test_cross_validation_is_mtebs(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "all.csv", 200)
    expected = theirs(mteb_tasks.classification_task(labelled_rows(path), None))
    found = ours(Task(name="t", kind="classification", path=str(path)))
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-6)


@pytest.mark.parametrize("most", [None, 120])
def test_clustering_is_mtebs(tmp_path: Path, most: int | None) -> None:
    path = write_labelled(tmp_path / "all.csv", 200)
    rows = labelled_rows(path)
    keys = {"n_clusters": 3, "max_documents_per_cluster": 300, "max_document_to_embed": most}
    expected = theirs(mteb_tasks.clustering_task(rows["text"], rows["label"], **keys))
    task = Task(name="t", kind="clustering", path=str(path), experiments=3, texts_per_experiment=300, max_texts=most)
    found = ours(task)
    assert 0.1 < found["v_measure"] < 0.99
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-6)


def test_bitext_is_mtebs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = [sentence(rng, i % 8, 5) for i in range(80)]
    other = [f"{text.split()[0]} {sentence(rng, i % 8, 2)} {text.split()[1]}" for i, text in enumerate(one)]
    path = write_csv(tmp_path / "bitext.csv", ("sentence1", "sentence2"), list(zip(one, other, strict=True)))
    expected = theirs(mteb_tasks.bitext_task(one, other))
    found = ours(Task(name="t", kind="bitext", path=str(path)))
    assert 0.1 < found["f1"] < 0.99
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-6)


def test_prompts_go_by_mtebs_order() -> None:
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.types import PromptType

    model = MtebModel(WordEncoder(), _Spec(), {})  # type: ignore[arg-type]
    names = ["LocalSTS-query", "LocalSTS", "STS-query", "STS", "query"]
    metadata = mteb_tasks.sts_task(["a"], ["b"], [1.0]).metadata
    for first in range(len(names)):
        prompts = {name: name for name in names[first:]}
        model = MtebModel(WordEncoder(), _Spec(), prompts)  # type: ignore[arg-type]
        for side in (PromptType.query, None):
            expected = get_prompt_name(prompts, metadata, side)
            role = "query" if side is not None else "document"
            assert model._prompted(metadata, side) == Prompted(role, expected)
