"""Of each row's negatives or candidates, as many as every row must have: cleaned, chosen, repeated where too few.

Shapes: R rows, F documents of all rows in one array (those of a row together), K of each row that are kept.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.corpus.duplicates import hash_ids
from operators.corpus.rows import Reasons, is_string, one_chunk, valid_strings
from operators.training.config.sets import TrainingSet
from operators.training.data.mixing import mixed


@dataclass(slots=True)
class Findings:
    """What is found out about a table of rows while it is cleaned: the reasons of bad ones, and what was changed."""

    reasons: Reasons
    changed: Counter[str] = field(default_factory=Counter)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.reasons.reason)

    def skip(self, mask_R: NDArray[np.bool_], reason: str, message: str) -> None:
        """Mark rows as bad, where they are not already."""
        self.reasons.mark(mask_R, reason, message)

    def skip_rows(self, rows: NDArray[np.int64], reason: str, message: str) -> None:
        """The same by numbers, which may repeat."""
        mask_R = np.zeros(self.num_rows, bool)
        mask_R[rows] = True
        self.skip(mask_R, reason, message)

    def note(self, what: str, count: int) -> None:
        """Count a change."""
        if count:
            self.changed[what] += count


@dataclass(frozen=True, slots=True)
class Candidates:
    """The documents of all rows, in order; null where one has no text."""

    texts: pa.StringArray  # F
    rows_F: NDArray[np.int64]
    scores_F: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """K documents of every row; of bad rows, any."""

    texts: pa.StringArray  # R * K
    hashes_RK: NDArray[np.uint64]
    scores_RK: NDArray[np.float64] | None


def text_hashes(texts: pa.StringArray) -> NDArray[np.uint64]:
    """64-bit hashes of texts (no nulls), the same for texts that differ in white space around them alone."""
    return hash_ids(pc.utf8_trim_whitespace(texts))


def other_labels(labels: tuple[str, ...], positives: pa.StringArray, findings: Findings) -> Candidates:
    """Every label but a row's own; rows whose label is none of them are bad."""
    place_R = pc.index_in(positives, pa.array(labels, pa.string())).fill_null(-1).to_numpy().astype(np.int64)
    findings.skip(place_R < 0, "unknown_label", f"the label is none of the set's {len(labels)} labels")
    others_RL = np.arange(len(labels)) != place_R[:, None]
    rows_F, labels_F = np.nonzero(others_RL)
    return Candidates(pa.array(labels, pa.string()).take(pa.array(labels_F)), rows_F)


def listed(raw: pa.Table, names: tuple[str, ...], findings: Findings) -> Candidates:
    """The documents that the columns hold, each a text or a list of texts, by row and then by column."""
    texts, rows = [], []
    for name in names:
        column = one_chunk(raw[name])
        rows_F = np.arange(raw.num_rows)
        if is_list(column.type):
            rows_F = pc.list_parent_indices(column).to_numpy().astype(np.int64)
            column = pc.list_flatten(column)
        if pa.types.is_null(column.type):
            column = column.cast(pa.string())
        if not is_string(column.type):
            findings.skip_rows(rows_F, "wrong_type", f"the column {name!r} holds {column.type}; expected texts")
            continue
        values, bad_F = valid_strings(column)
        findings.skip_rows(rows_F[bad_F], "invalid_utf8", f"a text in column {name!r} is not valid UTF-8")
        texts.append(values)
        rows.append(rows_F)
    if not texts:
        return Candidates(pa.array([], pa.string()), np.zeros(0, np.int64))
    rows_F = np.concatenate(rows)
    order_F = np.argsort(rows_F, kind="stable")
    return Candidates(pa.concat_arrays(texts).take(pa.array(order_F)), rows_F[order_F])


def choose(
    candidates: Candidates,
    own_RT: NDArray[np.uint64],
    query_R: NDArray[np.uint64],
    num_wanted: int,
    training_set: TrainingSet,
    draw_key: int,
    findings: Findings,
) -> Chosen:
    """K of each row's documents: no empty one, none twice, none of the row's `own` other texts (hashes).

    The first, or the first by a hash of document and query, so that a draw depends on nothing but the row and the key.
    """
    texts, num_rows = candidates.texts.fill_null(""), findings.num_rows
    hashes_F, rows_F = text_hashes(texts), candidates.rows_F
    empty_F = pc.equal(pc.utf8_trim_whitespace(texts), "").to_numpy(zero_copy_only=False)
    own_F = (hashes_F[:, None] == own_RT[rows_F]).any(axis=1) & ~empty_F
    again_F = _comes_again(hashes_F, rows_F) & ~empty_F & ~own_F
    findings.note("empty_document", int(empty_F.sum()))
    findings.note("negative_equals_positive_or_query", int(own_F.sum()))
    findings.note("repeated_document", int(again_F.sum()))
    good_F = np.flatnonzero(~(empty_F | own_F | again_F))
    if training_set.choose == "draw":
        draw_F = mixed(hashes_F[good_F] ^ query_R[rows_F[good_F]], draw_key)
        good_F = good_F[np.lexsort((draw_F, rows_F[good_F]))]
    counts_R = np.bincount(rows_F[good_F], minlength=num_rows)
    findings.skip(counts_R == 0, "no_documents", "no usable negative or candidate")
    if training_set.repeats:
        findings.note("row_with_repeats", int(((counts_R > 0) & (counts_R < num_wanted)).sum()))
    else:
        findings.skip(counts_R < num_wanted, "too_few_documents", f"fewer than {num_wanted} different documents")
    if not len(good_F):
        return _nothing(num_rows, num_wanted, candidates.scores_F is not None)
    starts_R = np.minimum(np.cumsum(counts_R) - counts_R, len(good_F) - 1)
    index_RK = good_F[starts_R[:, None] + np.arange(num_wanted) % np.maximum(counts_R, 1)[:, None]]
    scores_RK = None if candidates.scores_F is None else candidates.scores_F[index_RK]
    return Chosen(texts.take(pa.array(index_RK.reshape(-1))), hashes_F[index_RK], scores_RK)


def _nothing(num_rows: int, num_wanted: int, has_scores: bool) -> Chosen:
    shape = (num_rows, num_wanted)
    texts = pa.array([""] * (num_rows * num_wanted), pa.string())
    return Chosen(texts, np.zeros(shape, np.uint64), np.zeros(shape) if has_scores else None)


def _comes_again(hashes_F: NDArray[np.uint64], rows_F: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Documents that their row has before."""
    order = np.lexsort((hashes_F, rows_F))  # stable: equal ones stay in order
    same = (hashes_F[order][1:] == hashes_F[order][:-1]) & (rows_F[order][1:] == rows_F[order][:-1])
    again_F = np.zeros(len(hashes_F), bool)
    again_F[order[1:][same]] = True
    return again_F


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
