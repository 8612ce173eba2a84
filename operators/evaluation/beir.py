"""A retrieval set as BEIR keeps it: corpus.jsonl, queries.jsonl and judgements, with the corpus read in blocks.

The judgements and queries are in memory; of the corpus one block at a time (arXiv 2104.08663 has the format).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from operators.errors import InputError
from operators.evaluation.tables import part_file, rows
from operators.evaluation.tasks import Task
from operators.storage import Location, locate

BLOCK_ROWS = 2048

Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade


@dataclass(frozen=True, slots=True)
class DocumentBlock:
    """Consecutive documents of a corpus; `start` is the number of the first."""

    start: int
    ids: pa.StringArray
    texts: pa.StringArray


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """The judged queries of a retrieval task, in the order of their file, and where the documents are."""

    corpus: Location
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    qrels: Qrels
    notes: tuple[str, ...]  # what was left out: queries that no judgement names are not searched, as in MTEB


def read_retrieval(task: Task) -> RetrievalSet:
    """Queries and judgements of a BEIR folder; InputError for a missing file, and where nothing is judged."""
    folder = locate(task.path, task.storage_options)
    corpus, queries = part_file(folder, "corpus"), part_file(folder, "queries")
    for name, found in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        if found is None:
            raise InputError(f"task {task.name}: there is no {name} in {folder}: give a BEIR folder")
    assert corpus is not None, "checked above"
    assert queries is not None, "checked above"
    qrels = _qrels(_qrels_file(task, folder))
    texts = {_text(row, "_id", number, queries): _text(row, "text", number, queries) for number, row in rows(queries)}
    judged = {query: text for query, text in texts.items() if query in qrels}
    if not judged:
        raise InputError(f"task {task.name}: no query of {queries} is judged: its ids are not those of the judgements")
    unasked = len(qrels) - len(judged)
    unjudged = len(texts) - len(judged)
    notes = []
    if unjudged:
        notes.append(f"{unjudged:,} of {len(texts):,} queries are not judged and were left out")
    if unasked:
        notes.append(f"{unasked:,} judged queries are not in {queries.name} and were left out")
    kept = {query: qrels[query] for query in judged}
    hopeless = sum(not any(grade > 0 for grade in grades.values()) for grades in kept.values())
    if hopeless:
        notes.append(f"{hopeless:,} queries have no relevant document and score 0, as in MTEB")
    return RetrievalSet(corpus, tuple(judged), tuple(judged.values()), kept, tuple(notes))


def read_corpus(corpus: Location, block_rows: int = BLOCK_ROWS) -> Iterator[DocumentBlock]:
    """The documents in their order; a document's text is (title + " " + text).strip(), as MTEB has it."""
    ids: list[str] = []
    texts: list[str] = []
    start = 0
    for number, row in rows(corpus):
        ids.append(_text(row, "_id", number, corpus))
        texts.append(document_text(row.get("title"), _text(row, "text", number, corpus)))
        if len(ids) == block_rows:
            yield DocumentBlock(start, pa.array(ids, pa.string()), pa.array(texts, pa.string()))
            start += len(ids)
            ids, texts = [], []
    if ids:
        yield DocumentBlock(start, pa.array(ids, pa.string()), pa.array(texts, pa.string()))
    elif not start:
        raise InputError(f"{corpus} has no documents: give a corpus with at least one")


def document_text(title: str | None, text: str) -> str:
    """What is embedded of a document."""
    return f"{title} {text}".strip() if title else text.strip()


def _qrels_file(task: Task, folder: Location) -> Location:
    if task.qrels is not None:
        is_whole = task.qrels.startswith("/") or "://" in task.qrels
        return locate(task.qrels, task.storage_options) if is_whole else folder / task.qrels
    found = part_file(folder / "qrels", task.split) or part_file(folder, "qrels")
    if found is None:
        raise InputError(f"task {task.name}: {folder} has neither qrels.tsv nor qrels/{task.split}.tsv: set qrels")
    return found


def _qrels(location: Location) -> Qrels:
    """The judgements of every query (BEIR: query-id, corpus-id, score, with a header)."""
    qrels: Qrels = {}
    for number, row in rows(location):
        query, document = _text(row, "query-id", number, location), _text(row, "corpus-id", number, location)
        grade = number_of(row.get("score"), f"score of row {number} of {location}")
        if grade != int(grade):
            raise InputError(f"mend row {number} of {location}: a judgement is a whole number, got {grade}")
        qrels.setdefault(query, {})[document] = int(grade)
    return qrels


def number_of(value: Any, what: str) -> float:
    """A finite number; InputError naming `what` for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"mend the {what}: expected a number, got {value!r}") from None
    if not math.isfinite(number):
        raise InputError(f"mend the {what}: expected a finite number, got {value!r}")
    return number


def _text(row: Mapping[str, Any], name: str, number: int, location: Location) -> str:
    value = row.get(name)
    if isinstance(value, int) and name != "text":
        return str(value)
    if not isinstance(value, str):
        raise InputError(
            f"mend row {number} of {location}: expected a string {name!r}, got {value!r} (it has {', '.join(row)})"
        )
    return value
