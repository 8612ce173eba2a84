"""Which units of a source to look into before a run, and what was seen there.

Units are drawn without replacement with probability proportional to their bytes (systematic sampling over a shuffled
order; a unit larger than one sampling step is always drawn), because then every draw estimates the same thing, a
density per byte, whether units are 10 kB or 100 GB; a uniform draw would hinge on whether the largest file was hit.
Of each drawn unit the first rows are read. `operators/planning/expansion.py` turns both stages into an error bar.
Memory: one number for each unit of the listing, and the sampled rows' counts, never their text.

    U units, D drawn units, R rows of a unit, C chunks of a unit
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from operators.embedder.tokens.windows import tokens_read
from operators.work.fragment import FragmentBatch

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Of a small file too: fewer rows tell nothing of the spread within it.
MIN_ROWS_PER_UNIT = 10


class PlanConfig(BaseModel):
    """How much of the source a plan reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rows: int = Field(default=2000, ge=1, description="rows to read and tokenize, over all sampled units")
    sample_units: int = Field(
        default=32,
        ge=1,
        description="units (files, row groups, byte ranges) to read them from; the error bar shrinks with this number",
    )
    seed: int = Field(default=0, ge=0, description="seed of the random choice of units")
    report: str | None = Field(
        default=None, description="report.json of an earlier run of the same model, to take tokens per second from"
    )


@dataclass(frozen=True, slots=True, eq=False)
class UnitDraw:
    """The units that were chosen, and what their choice says about the units that were not."""

    indices_D: Ints  # positions in the listing, ascending
    certain_D: NDArray[np.bool_]  # drawn with probability one: speaks for itself alone
    num_units: int
    num_bytes: int
    rest_bytes: int  # bytes of the units that were left to chance
    correction: float  # finite population correction of that part: 1 = a tiny sample, 0 = all of it

    def rows_to_read(self, unit_bytes_U: Ints, sample_rows: int) -> Ints:
        """Rows to read of each drawn unit (shape D), about `sample_rows` in all.

        A unit that was left to chance stands for one sampling step of bytes, a certain one for its own.
        """
        stands_for_D = np.maximum(np.asarray(unit_bytes_U, dtype=np.float64)[self.indices_D], 1.0)
        num_rest = int((~self.certain_D).sum())
        if num_rest:
            stands_for_D[~self.certain_D] = self.rest_bytes / num_rest
        rows_D = np.ceil(sample_rows * stands_for_D / stands_for_D.sum()).astype(np.int64)
        enough_D: Ints = np.maximum(rows_D, MIN_ROWS_PER_UNIT)
        return enough_D


@dataclass(frozen=True, slots=True, eq=False)
class UnitSample:
    """What the first rows of one drawn unit held, rows and chunks in source order."""

    unit_bytes: int  # as listed
    bytes_read: int  # of those, what the rows below took; unit_bytes (or more) where the unit was read to its end
    chunks_by_row_R: Ints  # 0 for a rejected row
    text_chars_by_row_R: Ints  # 0 for a rejected row
    tokens_by_chunk_C: Ints  # special tokens and prompt included, after truncation; of late chunks their own alone
    id_bytes: int = 0  # all document ids together, UTF-8
    lost_tokens: int = 0  # cut off by truncation
    truncated: int = 0  # chunks that were cut
    read_by_chunk_C: Ints | None = None  # late chunking: tokens of the window that begins with the chunk, else 0

    def __post_init__(self) -> None:
        """Check that rows, chunks and bytes belong together."""
        assert len(self.chunks_by_row_R) == len(self.text_chars_by_row_R), "one text size for each row"
        assert int(self.chunks_by_row_R.sum()) == len(self.tokens_by_chunk_C), "one token count for each chunk"
        assert self.bytes_read > 0 or self.share_read == 1.0, "a unit that was not read to its end took no bytes"

    @property
    def read_C(self) -> Ints:
        """Tokens of what the model reads at once, where it begins with the chunk; 0 for the other chunks of it."""
        return self.tokens_by_chunk_C if self.read_by_chunk_C is None else self.read_by_chunk_C

    @property
    def size_bytes(self) -> int:
        """The unit's size as a measure for sampling: an empty file still has its turn."""
        return max(self.unit_bytes, 1)

    @property
    def share_read(self) -> float:
        """Part of the unit that was read, 0 to 1."""
        return 1.0 if self.bytes_read >= self.unit_bytes else self.bytes_read / self.unit_bytes


def choose_units(unit_bytes_U: Ints, num_units: int, seed: int) -> UnitDraw:
    """Draw units with probability proportional to bytes, without replacement; all of them if there are no more."""
    size_U = np.maximum(np.asarray(unit_bytes_U, dtype=np.float64), 1.0)
    total_bytes = int(size_U.sum())
    if num_units >= len(size_U):
        everything = np.arange(len(size_U))
        return UnitDraw(everything, np.ones(len(size_U), dtype=np.bool_), len(size_U), total_bytes, 0, 0.0)

    certain_U = _certain(size_U, num_units)
    rest = np.flatnonzero(~certain_U)
    num_drawn = num_units - int(certain_U.sum())
    order = np.random.default_rng(seed).permutation(rest)
    edges = np.cumsum(size_U[order])
    start = np.random.default_rng((seed, 1)).random()
    step = edges[-1] / num_drawn
    hits = np.searchsorted(edges, (start + np.arange(num_drawn)) * step, side="right")
    drawn = order[np.minimum(hits, len(order) - 1)]

    indices_D = np.sort(np.concatenate([np.flatnonzero(certain_U), drawn])).astype(np.int64)
    probability = size_U[rest] / step
    # With equal sizes this is 1 - n/N: the leading term of the variance in Hartley and Rao, "Sampling with unequal
    # probabilities and without replacement", Annals of Mathematical Statistics 33 (1962).
    correction = float(1.0 - (probability**2).sum() / num_drawn)
    return UnitDraw(indices_D, certain_U[indices_D], len(size_U), total_bytes, int(edges[-1]), max(correction, 0.0))


def sample_of(unit_bytes: int, bytes_read: int, batch: FragmentBatch) -> UnitSample:
    """Count what one unit's sampled rows became; `batch` holds them at the TOKENS stage, with the rows refused so far.

    A row's text is taken to be as long as its last chunk's `char_end`.
    """
    table, rejected = batch.table, batch.rejected
    tokens: dict[tuple[str, int | None], list[tuple[int, int]]] = defaultdict(list)
    chars: dict[tuple[str, int | None], int] = defaultdict(int)
    columns = (table[name].to_pylist() for name in ("source_path", "source_row", "num_tokens", "char_end"))
    for path, row, num_tokens, char_end, num_read in zip(*columns, tokens_read(table).tolist(), strict=True):
        tokens[path, row].append((num_tokens, num_read))
        chars[path, row] = max(chars[path, row], char_end)
    places = zip(rejected["source_path"].to_pylist(), rejected["source_row"].to_pylist(), strict=True)
    refused = [place for place in places if place not in tokens]
    # Refused rows slot in between the good ones, so that neighbours here are neighbours in the source.
    files = {path: rank for rank, path in enumerate(dict.fromkeys(path for path, _ in [*tokens, *refused]))}
    order = sorted([*tokens, *refused], key=lambda place: (files[place[0]], place[1] is None, place[1] or 0))
    first_chunks = pc.filter(table["doc_id"], pc.equal(table["chunk"], 0))
    return UnitSample(
        unit_bytes=unit_bytes,
        bytes_read=bytes_read,
        chunks_by_row_R=np.array([len(tokens.get(place, ())) for place in order], dtype=np.int64),
        text_chars_by_row_R=np.array([chars.get(place, 0) for place in order], dtype=np.int64),
        tokens_by_chunk_C=np.array([n for place in order for n, _ in tokens.get(place, ())], dtype=np.int64),
        read_by_chunk_C=np.array([n for place in order for _, n in tokens.get(place, ())], dtype=np.int64),
        id_bytes=pc.sum(pc.binary_length(first_chunks)).as_py() or 0,
        lost_tokens=batch.counts.lost_tokens,
        truncated=pc.sum(table["truncated"]).as_py() or 0,
    )


def _certain(size_U: Floats, num_units: int) -> NDArray[np.bool_]:
    """Units larger than one sampling step, again until what is left has none: each round shortens the step."""
    certain_U = np.zeros(len(size_U), dtype=np.bool_)
    while True:
        left = num_units - int(certain_U.sum())
        step = size_U[~certain_U].sum() / left if left else math.inf
        more_U = ~certain_U & (size_U >= step)
        if not more_U.any():
            return certain_U
        certain_U |= more_U
