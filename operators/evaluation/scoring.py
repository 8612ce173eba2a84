"""A task scored, kind by kind: its data read, its texts embedded, its metrics taken.

Reading comes first and for all tasks, before any model is loaded, so that a wrong path costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from operators.errors import InputError
from operators.evaluation.beir import RetrievalSet, number_of, read_retrieval
from operators.evaluation.bitext import score_bitext
from operators.evaluation.classification import LabelledTexts, read_labelled, score_classification, train_draws
from operators.evaluation.clustering import Clusters, read_clusters, score_clusters
from operators.evaluation.encoding import Encoder, Prompted, Retriever, comparable
from operators.evaluation.outcome import Outcome
from operators.evaluation.pairs import cosines, score_pairs, score_sts
from operators.evaluation.reranking import Candidates, read_candidates, score_reranking
from operators.evaluation.retrieval import check_judged, score_run
from operators.evaluation.tables import read_columns, task_file
from operators.evaluation.tasks import Task


@dataclass(frozen=True, slots=True)
class TextPairs:
    """Pairs of texts, with the score or label that people gave each (empty for bitext)."""

    one: tuple[str, ...]
    other: tuple[str, ...]
    judged: tuple[Any, ...]


TaskData = RetrievalSet | Candidates | TextPairs | LabelledTexts | Clusters


def read_task(task: Task) -> TaskData:
    """Everything of a task but a corpus; InputError names the file, the row and what was expected."""
    if task.kind == "retrieval":
        return read_retrieval(task)
    if task.kind == "reranking":
        return read_candidates(task)
    if task.kind == "classification":
        return read_labelled(task)
    return read_clusters(task) if task.kind == "clustering" else _read_pairs(task)


def score_task(task: Task, data: TaskData, model: Encoder | Retriever) -> Outcome:
    """The metrics of a model on a task."""
    if isinstance(data, RetrievalSet):
        run = cast(Retriever, model).retrieve(task, data)
        check_judged(run, data.qrels)
        return score_run(run, data.qrels, task.k, task.ignore_identical_ids, data.notes)
    encoder = cast(Encoder, model)
    if isinstance(data, Candidates):
        return score_reranking(task, data, encoder)
    if isinstance(data, LabelledTexts):
        return _classify(task, data, encoder)
    if isinstance(data, Clusters):
        return score_clusters(encoder.embed(data.texts, Prompted.text(task)), data, task.seed)
    return _score_pairs(task, data, encoder)


def _read_pairs(task: Task) -> TextPairs:
    location = task_file(task)
    one, other, *judged = read_columns(location, task.column_names)
    values: Sequence[Any] = judged[0] if judged else ()
    if task.kind == "sts":
        values = [number_of(value, f"score of row {i} of {location}") for i, value in enumerate(values, 1)]
    return TextPairs(tuple(map(str, one)), tuple(map(str, other)), tuple(values))


def _score_pairs(task: Task, data: TextPairs, encoder: Encoder) -> Outcome:
    vectors_ND = encoder.embed([*data.one, *data.other], Prompted.text(task))
    one_ND, other_ND = vectors_ND[: len(data.one)], vectors_ND[len(data.one) :]
    try:
        if task.kind == "bitext":
            one_ND, other_ND = (comparable(rows, encoder.similarity, task.name) for rows in (one_ND, other_ND))
            return score_bitext(one_ND, other_ND)
        score = score_sts if task.kind == "sts" else score_pairs
        return score(cosines(one_ND, other_ND), data.judged)
    except InputError as error:
        raise InputError(f"task {task.name}: {error}") from error


def _classify(task: Task, data: LabelledTexts, encoder: Encoder) -> Outcome:
    draws = train_draws(data, task)
    if task.num_folds is not None:
        vectors_ND = encoder.embed(data.texts, Prompted.text(task))
        return score_classification(dict(enumerate(vectors_ND)), vectors_ND, data, draws, task.seed)
    needed = sorted({place for train, _ in draws for place in train})
    texts = [*(data.train_texts[place] for place in needed), *data.texts]
    vectors_ND = encoder.embed(texts, Prompted.text(task))
    train_TD = dict(zip(needed, vectors_ND, strict=False))
    return score_classification(train_TD, vectors_ND[len(needed) :], data, draws, task.seed)
