"""Rows of tokens into batches: sorted by length, longest first, each within a budget of padded tokens.

Sorting a fragment (some 16k rows) puts texts of nearly equal length side by side, so that a batch is little padded; the
longest come first, so that a batch that does not fit in memory is found at once. Nothing here loops over rows.

Shapes: N rows of a call, B rows of a batch, T tokens of its rows, L tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.embedder.recipe.keywords import Side

# Padded tokens of a batch: small ones stay in a CPU's cache (measured: benchmarks/RESULTS.md), a GPU wants many.
CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 2048, 16384
OnTokens = Callable[[int], None]  # told of a batch's tokens when it is computed (on a GPU: when it is in its queue)


def untold(tokens: int) -> None:
    """Nobody wants to know of them."""


@dataclass(frozen=True, slots=True)
class Run:
    """Texts of equal length that lie side by side."""

    first_text: int
    first_token: int
    num_texts: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of similar length, longest first; none is empty."""

    ids_T: NDArray[np.int64]  # token ids, one row after another
    lengths_B: NDArray[np.int64]
    spans_B2: NDArray[np.int64] | None = None  # start and end of the tokens that are pooled; None: all of a row's
    chunks_S3: NDArray[np.int64] | None = None  # late chunks, row by row: row, start, end; None: one vector a row

    def mask(self, side: Side = "right") -> NDArray[np.bool_]:
        """mask_BL: where rows padded on `side` have a token."""
        mask_BL = np.arange(self.lengths_B.max()) < self.lengths_B[:, None]
        return mask_BL if side == "right" else np.ascontiguousarray(mask_BL[:, ::-1])

    def pad(self, pad_id: int, side: Side = "right") -> NDArray[np.int64]:
        """ids_BL: the rows padded on `side`."""
        return self._padded(self.ids_T, pad_id, side)

    def positions(self, skipped_id: int | None = None) -> NDArray[np.int64]:
        """positions_T: each token's place in its own row, from 0.

        As RoBERTa's family counts them where `skipped_id` is its padding's: from `skipped_id + 1`, over the tokens that
        have another id; the others' is `skipped_id`.
        """
        starts_B = self.row_starts(None)
        if skipped_id is None:
            return np.asarray(np.arange(len(self.ids_T)) - np.repeat(starts_B, self.lengths_B))
        counted_T = self.ids_T != skipped_id
        count_T = np.cumsum(counted_T)
        before_B = count_T[starts_B] - counted_T[starts_B]
        return np.asarray((count_T - np.repeat(before_B, self.lengths_B)) * counted_T + skipped_id)

    def padded_positions(self, skipped_id: int | None, side: Side) -> NDArray[np.int64]:
        """positions_BL: the same of the rows padded on `side`; 0 where there is no token."""
        return self._padded(self.positions(skipped_id), 0, side)

    def _padded(self, values_T: NDArray[np.int64], fill: int, side: Side) -> NDArray[np.int64]:
        mask_BL = self.mask(side)
        values_BL = np.full(mask_BL.shape, fill, np.int64)
        values_BL[mask_BL] = values_T
        return values_BL

    def runs(self, max_scores: int | None = None) -> Iterator[Run]:
        """The rows in order, those of equal length side by side in one run: fewest where rows are sorted.

        A run of more than one row has at most `max_scores` scores (rows x length x length).
        """
        edges = [0, *(np.flatnonzero(np.diff(self.lengths_B)) + 1).tolist(), len(self.lengths_B)]
        token = 0
        for start, end in pairwise(edges):
            length = int(self.lengths_B[start])
            most = end - start if max_scores is None else max(1, max_scores // (length * length))
            for first in range(start, end, most):
                run = Run(first, token, min(most, end - first), length)
                token += run.num_texts * length
                yield run

    def pooled(self, side: Side = "right") -> NDArray[np.bool_]:
        """pooled_BL: where rows padded on `side` have a token that is pooled."""
        if self.spans_B2 is None:
            return self.mask(side)
        length = self.lengths_B.max()
        starts_B = 0 if side == "right" else length - self.lengths_B
        spans_B2 = self.spans_B2 + np.reshape(starts_B, (-1, 1))
        positions_L = np.arange(length)
        return np.asarray((positions_L >= spans_B2[:, :1]) & (positions_L < spans_B2[:, 1:]))

    def row_starts(self, side: Side | None) -> NDArray[np.int64]:
        """Where each row's first token is among all places of the rows padded on `side`, or packed (None)."""
        if side is None:
            return np.cumsum(self.lengths_B) - self.lengths_B
        length = self.lengths_B.max()
        starts_B: NDArray[np.int64] = np.arange(len(self.lengths_B)) * length
        return starts_B if side == "right" else starts_B + (length - self.lengths_B)

    def chunk_places(self, side: Side | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Among the same places, those of the chunks' tokens, chunk after chunk, and where each of the S begins."""
        assert self.chunks_S3 is not None, "the batch has late chunks"
        rows_S, starts_S, ends_S = self.chunks_S3.T
        lengths_S = ends_S - starts_S
        begins_S = np.cumsum(lengths_S) - lengths_S
        shifts_S = self.row_starts(side)[rows_S] + starts_S - begins_S
        return np.repeat(shifts_S, lengths_S) + np.arange(int(lengths_S.sum())), begins_S


@dataclass(frozen=True, slots=True)
class Plan:
    """How N rows are cut into batches: batch i holds rows `order[cuts[i]:cuts[i + 1]]`."""

    order: NDArray[np.int64]  # the rows that have tokens, longest first
    cuts: NDArray[np.int64]
    padding_tokens: int  # what a forward that pads computes for nothing


def plan(lengths_N: NDArray[np.int64], budget_tokens: int) -> Plan:
    """Cut rows into batches of at most `budget_tokens` padded tokens; a longer row is a batch of its own."""
    order = np.argsort(-lengths_N, kind="stable")
    order = order[lengths_N[order] > 0]
    lengths = lengths_N[order]
    cuts = [0]
    padded_tokens = 0
    while cuts[-1] < len(order):
        longest = int(lengths[cuts[-1]])
        end = min(len(order), cuts[-1] + max(1, budget_tokens // longest))
        padded_tokens += longest * (end - cuts[-1])
        cuts.append(end)
    return Plan(order, np.array(cuts, np.int64), padded_tokens - int(lengths.sum()))


def batches(input_ids: pa.ListArray, plan: Plan, spans_N2: NDArray[np.int64] | None = None) -> Iterator[Batch]:
    """The batches of a plan, in its order; each is copied when it is asked for."""
    offsets = input_ids.offsets.to_numpy().astype(np.int64)
    ids = input_ids.values.to_numpy()
    starts_N, lengths_N = offsets[:-1], np.diff(offsets)
    for start, end in zip(plan.cuts[:-1], plan.cuts[1:], strict=True):
        rows = plan.order[start:end]
        lengths_B = lengths_N[rows]
        shifts_B = starts_N[rows] - (np.cumsum(lengths_B) - lengths_B)
        positions_T = np.repeat(shifts_B, lengths_B) + np.arange(int(lengths_B.sum()))
        yield Batch(ids[positions_T].astype(np.int64), lengths_B, None if spans_N2 is None else spans_N2[rows])
