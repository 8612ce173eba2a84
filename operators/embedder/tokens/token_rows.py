"""What the rows of `input_ids` consist of: readings of a text, and in each reading the tokens that are pooled.

A row is all that travels through the pipeline; where its prompt ends and its text begins is worked out from the row's
length and constants of the run, in the embedding worker. A role with several prompts (MetaEOL) has as many readings in
a row, with SEPARATOR between them.

Shapes: N rows, R readings of a row, M = N * R readings of all rows, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.embedder.recipe.keywords import PoolOver

SEPARATOR = -1  # no token has this id


@dataclass(frozen=True, slots=True)
class Layout:
    """How many tokens a reading has around its text; with two copies of it, all that is over is shared by both."""

    first: int  # the tokenizer's own, such as [CLS] or <s>
    prefix: int  # 0 where there is no prompt
    suffix: int
    last: int  # [SEP], </s>, the end token
    between: int = 0
    copies: int = 1

    @property
    def fixed(self) -> int:
        """Tokens of the reading of an empty text."""
        return self.first + self.prefix + self.between + self.suffix + self.last

    def leaves_out(self, pool_over: PoolOver) -> bool:
        """Whether any of a reading's tokens are not pooled."""
        if pool_over == "after_prompt":
            return self.prefix > 0
        return pool_over == "text" and (self.fixed > 0 or self.copies > 1)

    def spans(self, lengths_N: NDArray[np.int64], pool_over: PoolOver) -> NDArray[np.int64]:
        """spans_N2: start and end of the tokens that are pooled, of readings of these lengths; none before its start.

        `after_prompt` leaves out the prompt and what stands before it, and nothing where there is no prompt; `text`
        leaves out all that is not the text (its last copy).
        """
        starts_N, ends_N = np.zeros_like(lengths_N), lengths_N
        if pool_over == "after_prompt" and self.prefix:
            starts_N = starts_N + self.first + self.prefix
        if pool_over == "text":
            ends_N = lengths_N - self.suffix - self.last
            starts_N = ends_N - (lengths_N - self.fixed) // self.copies
        return np.stack([np.minimum(starts_N, ends_N), ends_N], axis=1).clip(min=0)


def join(readings: Sequence[pa.ListArray]) -> pa.ListArray:
    """One row of N from each of R columns of N readings."""
    if len(readings) == 1:
        return readings[0]
    lengths_RN = np.stack([np.diff(column.offsets.to_numpy()) for column in readings]).astype(np.int64)
    num_readings = len(lengths_RN)
    row_lengths_N = lengths_RN.sum(axis=0) + num_readings - 1
    row_starts_N = np.cumsum(row_lengths_N) - row_lengths_N
    ids = np.full(int(row_lengths_N.sum()), SEPARATOR, np.int32)
    shifts_N = row_starts_N
    for column, lengths_N in zip(readings, lengths_RN, strict=True):
        own_starts_N = np.cumsum(lengths_N) - lengths_N
        places = np.repeat(shifts_N - own_starts_N, lengths_N) + np.arange(int(lengths_N.sum()))
        ids[places] = column.flatten().to_numpy()
        shifts_N = shifts_N + lengths_N + 1
    return pa.ListArray.from_arrays(pa.array(_offsets(row_lengths_N)), pa.array(ids))


def split(input_ids: pa.ListArray, num_readings: int) -> pa.ListArray:
    """The M readings of N rows, the inverse of `join`; a row without tokens has readings without tokens."""
    if num_readings == 1:
        return input_ids
    ids = input_ids.flatten().to_numpy()
    lengths_N = np.diff(input_ids.offsets.to_numpy()).astype(np.int64)
    starts_N = np.cumsum(lengths_N) - lengths_N
    some = lengths_N > 0
    separators = np.flatnonzero(ids == SEPARATOR)
    if len(separators) != some.sum() * (num_readings - 1):
        raise ValueError(f"expected {num_readings} readings in each row of input_ids, found {len(separators)} ends")
    edges = np.zeros((len(lengths_N), num_readings + 1), np.int64)  # one before each reading's first token
    edges[:, 0], edges[:, -1] = starts_N - 1, starts_N + lengths_N
    edges[some, 1:-1] = separators.reshape(-1, num_readings - 1)
    lengths_M = np.where(some[:, None], np.diff(edges, axis=1) - 1, 0).ravel()
    return pa.ListArray.from_arrays(pa.array(_offsets(lengths_M)), pa.array(ids[ids != SEPARATOR]))


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    total = int(lengths.sum())
    if total > np.iinfo(np.int32).max:
        raise ValueError(f"{total} tokens are too many for one table: make fragments smaller")
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
