"""Synthetic sources whose totals are known: units that differ in size, in language, and in how broken they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from operators.planning.expansion import Expansion, expand
from operators.planning.sampling import UnitSample, choose_units

MAX_TOKENS = 254


@dataclass(frozen=True)
class SyntheticUnit:
    """The rows of one unit: chunks (0: rejected), characters, tokens and bytes of each."""

    chunks_R: NDArray[np.int64]
    chars_R: NDArray[np.int64]
    tokens_R: NDArray[np.int64]
    bytes_R: NDArray[np.float64]

    @property
    def num_bytes(self) -> int:
        return int(self.bytes_R.sum())

    def sample(self, rows: int, rng: np.random.Generator | None = None) -> UnitSample:
        """Its first rows, as a reader would report them; with `rng` in an order of that draw."""
        read = min(rows, len(self.chunks_R))
        chosen = np.arange(read) if rng is None else rng.permutation(len(self.chunks_R))[:read]
        whole = read == len(self.chunks_R)
        return UnitSample(
            unit_bytes=self.num_bytes,
            bytes_read=self.num_bytes if whole else max(1, int(self.bytes_R[chosen].sum())),
            chunks_by_row_R=self.chunks_R[chosen],
            text_chars_by_row_R=self.chars_R[chosen],
            tokens_by_chunk_C=split_evenly(self.tokens_R[chosen], self.chunks_R[chosen]),
        )


def split_evenly(tokens_R: NDArray[np.int64], chunks_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens of each chunk: those of its row in equal parts, what is left over in the first."""
    good = chunks_R > 0
    tokens_R, chunks_R = tokens_R[good], chunks_R[good]
    tokens_C = np.repeat(tokens_R // chunks_R, chunks_R)
    tokens_C[np.cumsum(chunks_R) - chunks_R] += tokens_R % chunks_R
    return tokens_C


def make_units(
    seed: int, num_units: int, rows: int = 300, size_spread: float = 1.0, rejected: float = 0.02
) -> list[SyntheticUnit]:
    """Units of log-normal sizes; documents are longer in some units than in others, and rejects cluster in units."""
    rng = np.random.default_rng(seed)
    units = []
    for num in np.maximum(1, (rows * rng.lognormal(0, size_spread, num_units)).astype(np.int64)):
        mean_chars, tokens_per_char = 600 * rng.lognormal(0, 0.4), 0.25 * rng.lognormal(0, 0.15)
        chars_R = np.maximum(1, (mean_chars * rng.lognormal(-0.5, 1.0, num)).astype(np.int64))
        content_R = np.maximum(1, (chars_R * tokens_per_char * rng.lognormal(0, 0.1, num)).astype(np.int64))
        is_bad_R = rng.random(num) < (rng.beta(0.5, 0.5 / rejected - 0.5) if rejected else 0.0)
        chunks_R = np.where(is_bad_R, 0, -(-content_R // MAX_TOKENS))
        bytes_R = (np.where(is_bad_R, 0, chars_R) + rng.integers(40, 90, num)) * rng.lognormal(0, 0.05)
        tokens_R = np.where(is_bad_R, 0, content_R + 2 * chunks_R)
        units.append(SyntheticUnit(chunks_R, np.where(is_bad_R, 0, chars_R), tokens_R, bytes_R))
    return units


def true_totals(units: Sequence[SyntheticUnit]) -> dict[str, int]:
    return {
        "documents": sum(len(unit.chunks_R) for unit in units),
        "tokens": sum(int(unit.tokens_R.sum()) for unit in units),
        "chunks": sum(int(unit.chunks_R.sum()) for unit in units),
        "rejected": sum(int((unit.chunks_R == 0).sum()) for unit in units),
    }


def expand_units(units: Sequence[SyntheticUnit], num_drawn: int, sample_rows: int, seed: int) -> Expansion:
    """One plan's sample: other units, and other rows at their beginnings, for each seed."""
    rng = np.random.default_rng(seed)
    sizes = np.array([unit.num_bytes for unit in units])
    draw = choose_units(sizes, num_drawn, seed)
    rows_D = draw.rows_to_read(sizes, sample_rows)
    samples = [units[i].sample(rows, rng) for i, rows in zip(draw.indices_D, rows_D.tolist(), strict=True)]
    return expand(samples, draw)
