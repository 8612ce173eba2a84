"""MTEB tasks over data of our own, so that mteb runs without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores, make_score_dict
from mteb.abstasks import (
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata


def local_task(base: type, kind: str, main_score: str, dataset: Any, **attributes: Any) -> Any:
    """A task of `base` whose data are given: a split "test" (and "train") of what the kind reads."""

    def load_data(self: Any, num_proc: int | None = None, **options: Any) -> None:
        self.dataset = dataset
        self.data_loaded = True

    metadata = TaskMetadata(
        name=f"Local{kind}",
        description="local data",
        reference=None,
        dataset={"path": "local/none", "revision": "1"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )
    return type(f"Local{kind}", (base,), {"metadata": metadata, "load_data": load_data, **attributes})()


def sts_task(one: list[str], other: list[str], score: list[float]) -> Any:
    """Semantic similarity."""
    rows = Dataset.from_dict({"sentence1": one, "sentence2": other, "score": score})
    dataset = DatasetDict({"test": rows})
    return local_task(AbsTaskSTS, "STS", "cosine_spearman", dataset, min_score=0, max_score=5)


def retrieval_task(
    corpus: list[dict[str, str]],
    queries: list[dict[str, str]],
    qrels: dict[str, dict[str, int]],
    top_ranked: dict[str, list[str]] | None = None,
) -> Any:
    """Retrieval, or reranking where candidates are given."""
    split = {
        "corpus": Dataset.from_list(corpus),
        "queries": Dataset.from_list(queries),
        "relevant_docs": qrels,
        "top_ranked": top_ranked,
    }
    kind = "Reranking" if top_ranked else "Retrieval"
    return local_task(AbsTaskRetrieval, kind, "ndcg_at_10", {"default": {"test": split}})


def pair_task(one: list[str], other: list[str], labels: list[int]) -> Any:
    """Pair classification."""
    rows = Dataset.from_dict({"sentence1": one, "sentence2": other, "labels": labels})
    return local_task(AbsTaskPairClassification, "PairClassification", "max_ap", DatasetDict({"test": rows}))


def classification_task(train: dict[str, list[Any]], test: dict[str, list[Any]] | None, **attributes: Any) -> Any:
    """Classification; cross-validated without a test part."""
    parts = {"train": Dataset.from_dict(train), "test": Dataset.from_dict(test or train)}
    if test is None:
        attributes |= {"is_cross_validation": True, "train_split": "test"}
    return local_task(AbsTaskClassification, "Classification", "accuracy", DatasetDict(parts), **attributes)


def clustering_task(texts: list[str], labels: list[str], **attributes: Any) -> Any:
    """Clustering of all texts."""
    rows = Dataset.from_dict({"sentences": texts, "labels": labels})
    whole = {"max_fraction_of_documents_to_embed": None, **attributes}
    return local_task(AbsTaskClustering, "Clustering", "v_measure", DatasetDict({"test": rows}), **whole)


def bitext_task(one: list[str], other: list[str]) -> Any:
    """Bitext mining."""
    rows = Dataset.from_dict({"sentence1": one, "sentence2": other})
    return local_task(AbsTaskBitextMining, "BitextMining", "f1", DatasetDict({"test": rows}))


def mteb_scores(model: Any, task: Any) -> dict[str, Any]:
    """What mteb measures."""
    import mteb

    result = mteb.evaluate(
        model, [task], cache=None, overwrite_strategy="always", co2_tracker=False, show_progress_bar=False
    )
    [scores] = result.task_results[0].scores["test"]
    return dict(scores)


def retrieval_scores(run: Mapping[str, Mapping[str, float]], qrels: Any, ks: Sequence[int]) -> dict[str, float]:
    """MTEB's metrics of a ranking, by its names."""
    theirs = calculate_retrieval_scores({query: dict(found) for query, found in run.items()}, qrels, ks)
    return dict(
        make_score_dict(
            ndcg=theirs.ndcg,
            _map=theirs.map,
            recall=theirs.recall,
            precision=theirs.precision,
            mrr=theirs.mrr,
            naucs={},
            naucs_mrr={},
            hit_rate=theirs.hit_rate,
            task_scores={},
        )
    )
