"""Raw columns into training rows: one query and K documents each, or a reason why not.

Nothing is dropped in silence: a skipped row is counted by its reason, and so is what was changed in others (texts that
were cut, negatives that were the positive or came twice, documents repeated because there were too few).

Shapes: R rows, K documents of each, T = 1 + K texts, F documents of all rows in one array.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.corpus.rows import Reasons, one_chunk, row_texts
from operators.training.config.sets import TrainingSet
from operators.training.data.candidates import (
    Candidates,
    Findings,
    choose,
    is_list,
    listed,
    other_labels,
    text_hashes,
)
from operators.training.data.counts import RowCounts
from operators.training.data.mixing import key_of
from operators.work.names import RAW_MESSAGE, RAW_REASON, RAW_ROW

ROW_SCHEMA = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("documents", pa.list_(pa.string())),  # K of each row, the positive first
        pa.field("scores", pa.list_(pa.float64())),  # of scored: one; of lists: K; else null
        pa.field("label", pa.int32()),  # place in the set's `labels`
    ]
)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Good rows in the order of the source, in `ROW_SCHEMA`, with a 64-bit hash of each text."""

    rows: pa.Table
    hashes_RT: NDArray[np.uint64]  # of the query and the documents
    counts: RowCounts


def clean(raw: pa.Table, path: str, training_set: TrainingSet, seed: int) -> Cleaned:
    """Rows from the columns that a reader of `operators.corpus.formats` gave for a file."""
    exploded = _row_per_positive(raw, training_set)
    findings = Findings(Reasons(exploded, RAW_REASON, RAW_MESSAGE))
    missing = [name for name in training_set.wanted if name not in exploded.column_names]
    if missing:
        findings.skip(np.ones(exploded.num_rows, bool), "missing_column", f"the file has no column {missing[0]!r}")
        rows, hashes_RT = ROW_SCHEMA.empty_table(), np.zeros((0, 1 + training_set.num_documents), np.uint64)
    else:
        rows, hashes_RT = _rows(exploded, training_set, seed, findings)
        good_R = np.array([reason is None for reason in findings.reasons.reason], bool)
        rows, hashes_RT = rows.filter(pa.array(good_R)), hashes_RT[good_R]
    return Cleaned(rows, hashes_RT, _counts(raw, exploded, path, rows.num_rows, findings))


def _rows(
    raw: pa.Table, training_set: TrainingSet, seed: int, findings: Findings
) -> tuple[pa.Table, NDArray[np.uint64]]:
    query = _column_texts(raw, "query", training_set, findings)
    documents, hashes, scores = [], [text_hashes(query)[:, None]], None
    if training_set.has_positive:
        positive = _column_texts(raw, "positive", training_set, findings)
        hashes.append(text_hashes(positive)[:, None])
        documents.append(positive)
        if training_set.kind != "scored":
            same_R = (hashes[0] == hashes[1])[:, 0]
            findings.skip(same_R, "positive_equals_query", "the positive is the query itself")
    candidates = _candidates(raw, documents, training_set, findings)
    if candidates is not None:
        # A list may hold its query: the teacher's score says what that is worth.
        own_RT = np.zeros((raw.num_rows, 0), np.uint64) if training_set.kind == "lists" else np.hstack(hashes)
        wanted = training_set.num_documents - len(documents)
        key = key_of("documents", seed)
        chosen = choose(candidates, own_RT, hashes[0][:, 0], wanted, training_set, key, findings)
        hashes.append(chosen.hashes_RK)
        documents += [chosen.texts.take(pa.array(np.arange(rank, len(chosen.texts), wanted))) for rank in range(wanted)]
        scores = chosen.scores_RK
    if training_set.kind == "scored" and not training_set.columns.label:
        scores = _score(raw, training_set, findings)[:, None]
    columns = {
        "query": query,
        "documents": _rows_of(documents, raw.num_rows),
        "scores": pa.nulls(raw.num_rows, ROW_SCHEMA.field("scores").type) if scores is None else _lists(scores),
        "label": _label(raw, training_set, findings),
    }
    return pa.table(columns, schema=ROW_SCHEMA), np.hstack(hashes)


def _row_per_positive(raw: pa.Table, training_set: TrainingSet) -> pa.Table:
    """A row for each positive of a list; a row without any stays, to be counted as one without a text."""
    if not training_set.has_positive or training_set.column("positive") not in raw.column_names:
        return raw
    name = training_set.column("positive")
    column = one_chunk(raw[name])
    if not is_list(column.type):
        return raw
    lengths_R = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    rows = np.repeat(np.arange(raw.num_rows), np.maximum(lengths_R, 1))
    texts = pc.list_flatten(column)
    places = np.full(len(rows), -1)
    places[np.repeat(lengths_R > 0, np.maximum(lengths_R, 1))] = np.arange(len(texts))
    exploded = raw.take(pa.array(rows))
    positives = texts.take(pa.array(places, mask=places < 0))
    return exploded.set_column(exploded.schema.get_field_index(name), name, positives)


def _column_texts(raw: pa.Table, name: str, training_set: TrainingSet, findings: Findings) -> pa.StringArray:
    """A text of each row, empty where there is none."""
    texts = row_texts(raw, training_set.column(name), findings.reasons)
    return _limited(texts, np.arange(raw.num_rows), training_set, findings).fill_null("")


def _limited(
    texts: pa.Array, rows_F: NDArray[np.int64], training_set: TrainingSet, findings: Findings
) -> pa.StringArray:
    """The texts without what is beyond `max_chars`."""
    limit = training_set.max_chars
    long_F = pc.greater(pc.utf8_length(texts), limit).fill_null(False).to_numpy(zero_copy_only=False)
    if not long_F.any():
        return texts
    if training_set.too_long == "skip":
        findings.skip_rows(rows_F[long_F], "too_long", f"a text of more than {limit:,} characters")
        return texts
    findings.note("cut_text", int(long_F.sum()))
    return pc.utf8_slice_codeunits(texts, 0, limit)


def _candidates(
    raw: pa.Table, documents: list[pa.StringArray], training_set: TrainingSet, findings: Findings
) -> Candidates | None:
    """What the negatives or the documents of a list are chosen from; None where the kind has none."""
    if training_set.labels_as_documents and training_set.kind == "pairs":
        return other_labels(training_set.labels, documents[0], findings)
    if not training_set.document_columns:
        return None
    found = listed(raw, training_set.document_columns, findings)
    found = replace(found, texts=_limited(found.texts, found.rows_F, training_set, findings))
    if training_set.kind != "lists":
        return found
    return replace(found, scores_F=_list_scores(raw, found.rows_F, training_set, findings))


def _list_scores(
    raw: pa.Table, rows_F: NDArray[np.int64], training_set: TrainingSet, findings: Findings
) -> NDArray[np.float64]:
    """The score of each candidate; of rows with a bad one, any."""
    column = one_chunk(raw[training_set.column("scores")])
    scores_F = np.zeros(len(rows_F))
    if not is_list(column.type):
        findings.skip(np.ones(raw.num_rows, bool), "wrong_type", f"the scores are {column.type}; expected lists")
        return scores_F
    lengths_R = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    fits_R = lengths_R == np.bincount(rows_F, minlength=raw.num_rows)
    findings.skip(~fits_R, "scores_do_not_match", "there is not one score for each candidate")
    values = _numbers(pc.list_flatten(column))
    value_rows = np.repeat(np.arange(raw.num_rows), lengths_R)
    findings.skip_rows(value_rows[~np.isfinite(values)], "bad_score", "a score is missing, no number or infinite")
    scores_F[fits_R[rows_F]] = values[fits_R[value_rows]]
    return scores_F


def _score(raw: pa.Table, training_set: TrainingSet, findings: Findings) -> NDArray[np.float64]:
    score_R = _numbers(one_chunk(raw[training_set.column("score")]))
    findings.skip(~np.isfinite(score_R), "bad_score", "the score is missing, no number or infinite")
    if training_set.score_range is None:
        return score_R
    low, high = training_set.score_range
    outside_R = np.isfinite(score_R) & ((score_R < low) | (score_R > high))
    findings.skip(outside_R, "score_out_of_range", f"the score is outside [{low:g}, {high:g}]")
    return (score_R - low) / (high - low)


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    """The values as floats, NaN where they are none."""
    try:
        return np.asarray(column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.array([_number(value) for value in column.to_pylist()], np.float64)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # whatever a file holds
    except (TypeError, ValueError):
        return float("nan")


def _label(raw: pa.Table, training_set: TrainingSet, findings: Findings) -> pa.Array:
    if not training_set.columns.label:
        return pa.nulls(raw.num_rows, pa.int32())
    column = one_chunk(raw[training_set.columns.label])
    places = pc.index_in(column.cast(pa.string()), pa.array(training_set.labels, pa.string()))
    unknown_R = pc.is_null(places).to_numpy(zero_copy_only=False)
    findings.skip(unknown_R, "unknown_label", f"the label is none of {', '.join(training_set.labels)}")
    return places


def _rows_of(documents: list[pa.StringArray], num_rows: int) -> pa.Array:
    """documents[k][r] as the k-th of row r's list."""
    count = len(documents)
    flat = pa.concat_arrays(documents) if documents else pa.array([], pa.string())
    places = (np.arange(num_rows)[:, None] + np.arange(count) * num_rows).reshape(-1)
    return pa.ListArray.from_arrays(_offsets(num_rows, count), flat.take(pa.array(places, pa.int64())))


def _lists(values_RK: NDArray[np.float64]) -> pa.Array:
    return pa.ListArray.from_arrays(_offsets(*values_RK.shape), pa.array(values_RK.reshape(-1)))


def _offsets(num_rows: int, count: int) -> pa.Array:
    return pa.array(np.arange(num_rows + 1, dtype=np.int32) * count, pa.int32())


def _counts(raw: pa.Table, exploded: pa.Table, path: str, kept: int, findings: Findings) -> RowCounts:
    skipped: Counter[str] = Counter()
    examples: dict[str, tuple[str, ...]] = {}
    numbers = exploded[RAW_ROW].to_pylist()
    for number, reason, message in zip(numbers, findings.reasons.reason, findings.reasons.message, strict=True):
        if reason is not None:
            skipped[reason] += 1
            if skipped[reason] == 1:
                examples[reason] = (f"{path}#{number}: {message}",)
    return RowCounts(
        read=raw.num_rows,
        added=exploded.num_rows - raw.num_rows,
        kept=kept,
        skipped=dict(skipped),
        changed=dict(findings.changed),
        examples=examples,
    )
