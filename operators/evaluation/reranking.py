"""Reranking: the few candidates of each query in the order of their similarity with it.

A line of the file has a query, its positives and its negatives (lists of texts). A query that lacks one of the two is
left out, as in MTEB; so is the order of ties: by names that put positives first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.errors import InputError
from operators.evaluation.encoding import Encoder, Prompted, comparable
from operators.evaluation.outcome import Outcome
from operators.evaluation.retrieval import Run, score_run
from operators.evaluation.tables import rows, task_file
from operators.evaluation.tasks import Task


@dataclass(frozen=True, slots=True)
class Candidates:
    """Queries with their candidates."""

    queries: tuple[str, ...]
    documents: tuple[tuple[tuple[str, str, int], ...], ...]  # of each query: name, text, 1 for a positive
    notes: tuple[str, ...]


def read_candidates(task: Task) -> Candidates:
    """The queries of a reranking file; InputError for a row without texts, or where no query has both kinds."""
    location = task_file(task)
    query_key, positive_key, negative_key = task.column_names
    queries: list[str] = []
    documents, left_out = [], 0
    for number, row in rows(location):
        query = row.get(query_key)
        positives, negatives = (_texts(row.get(key)) for key in (positive_key, negative_key))
        if not isinstance(query, str) or positives is None or negatives is None:
            raise InputError(
                f"mend row {number} of {location}: expected a string {query_key!r} and lists of strings "
                f"{positive_key!r} and {negative_key!r}; it has {', '.join(row)}"
            )
        if not positives or not negatives:
            left_out += 1
            continue
        name = f"query{len(queries)}"
        queries.append(query)
        documents.append(
            tuple((f"apositive_{name}_{i:05d}", text, 1) for i, text in enumerate(positives))
            + tuple((f"negative_{name}_{i:05d}", text, 0) for i, text in enumerate(negatives))
        )
    if not queries:
        raise InputError(f"task {task.name}: give queries with positives and negatives: {location} has none")
    notes = (f"{left_out:,} queries without positives or negatives were left out",) if left_out else ()
    return Candidates(tuple(queries), tuple(documents), notes)


def score_reranking(task: Task, data: Candidates, encoder: Encoder) -> Outcome:
    """The metrics of retrieval over each query's own candidates."""
    texts = list(dict.fromkeys(text for documents in data.documents for _, text, _ in documents))
    queries_QD = comparable(encoder.embed(data.queries, Prompted.query(task)), encoder.similarity, task.name)
    vectors_ND = comparable(encoder.embed(texts, Prompted.text(task)), encoder.similarity, task.name)
    place = {text: i for i, text in enumerate(texts)}
    run: dict[str, dict[str, float]] = {}
    qrels: dict[str, dict[str, int]] = {}
    for number, documents in enumerate(data.documents):
        scores = vectors_ND[np.array([place[text] for _, text, _ in documents])] @ queries_QD[number]
        names = [name for name, _, _ in documents]
        run[f"query{number}"] = dict(zip(names, scores.tolist(), strict=True))
        qrels[f"query{number}"] = {name: grade for name, _, grade in documents}
    found: Run = run
    return score_run(found, qrels, task.k, notes=data.notes)


def _texts(value: Any) -> list[str] | None:
    texts = [value] if isinstance(value, str) else value
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else None
