"""One ranking of two: what dense and sparse search have found, fused after each is exact over all shards.

Shapes: Q queries, C candidates of one side, K results, S candidates of both sides of all queries.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from operators.index.group import Found

Mode = Literal["dense", "sparse", "hybrid"]


class Fusion(BaseModel):
    """How the two rankings of a hybrid search become one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["rrf", "weighted"] = Field(
        default="rrf",
        description="rrf: sum of 1 / (constant + rank) (Cormack 2009); weighted: sum of the sides' scores, each scaled "
        "to 0..1 over a query's candidates",
    )
    constant: int = Field(default=60, ge=0, description="of rrf: the larger, the less the first ranks stand out")
    alpha: float = Field(default=0.5, ge=0, le=1, description="of weighted: what the dense side weighs")
    depth: int | None = Field(
        default=None, ge=1, le=4096, description="candidates of each side; null = 100, or k where that is more"
    )

    def candidates(self, k: int) -> int:
        """How many candidates each side gives for k results."""
        return max(k, self.depth or 100)


def fuse(dense: Found, sparse: Found, dense_larger_is_better: bool, fusion: Fusion, k: int) -> Found:
    """The k best of both; what one side has not found gets nothing from it, and equal scores are ordered by id."""
    if fusion.method == "rrf":
        worth = [_reciprocal_ranks(found.ids_QK, fusion.constant) for found in (dense, sparse)]
    else:
        dense_QC = dense.scores_QK if dense_larger_is_better else -dense.scores_QK
        worth = [
            fusion.alpha * _scaled(dense_QC, dense.ids_QK),
            (1 - fusion.alpha) * _scaled(sparse.scores_QK, sparse.ids_QK),
        ]
    ids_QC = np.concatenate([dense.ids_QK, sparse.ids_QK], axis=1)
    queries_S, places_S = np.nonzero(ids_QC >= 0)
    ids_S = ids_QC[queries_S, places_S]
    worth_S = np.concatenate(worth, axis=1)[queries_S, places_S]
    order = np.lexsort((ids_S, queries_S))
    queries_S, ids_S, worth_S = queries_S[order], ids_S[order], worth_S[order]
    first = np.flatnonzero((np.diff(queries_S, prepend=-1) != 0) | (np.diff(ids_S, prepend=-1) != 0))
    if not len(first):
        return Found(np.full((len(ids_QC), k), -np.inf, np.float32), np.full((len(ids_QC), k), -1, np.int64))
    return _ranked(queries_S[first], ids_S[first], np.add.reduceat(worth_S, first), len(ids_QC), k)


def _ranked(
    queries_S: NDArray[np.int64], ids_S: NDArray[np.int64], worth_S: NDArray[np.float64], num_queries: int, k: int
) -> Found:
    order = np.lexsort((ids_S, -worth_S, queries_S))
    queries_S, ids_S, worth_S = queries_S[order], ids_S[order], worth_S[order]
    starts_Q = np.searchsorted(queries_S, np.arange(num_queries))
    places_S = np.arange(len(queries_S)) - starts_Q[queries_S]
    kept = places_S < k
    scores_QK = np.full((num_queries, k), -np.inf, np.float32)
    ids_QK = np.full((num_queries, k), -1, np.int64)
    scores_QK[queries_S[kept], places_S[kept]] = worth_S[kept]
    ids_QK[queries_S[kept], places_S[kept]] = ids_S[kept]
    return Found(scores_QK, ids_QK)


def _reciprocal_ranks(ids_QC: NDArray[np.int64], constant: int) -> NDArray[np.float64]:
    return np.broadcast_to(1.0 / (constant + 1.0 + np.arange(ids_QC.shape[1])), ids_QC.shape)


def _scaled(scores_QC: NDArray[np.float32], ids_QC: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scores scaled to 0..1 over each query's candidates; 1 where all of them are equal."""
    there_QC = ids_QC >= 0
    scores_QC = np.where(there_QC, scores_QC, 0.0)
    low_Q1 = np.where(there_QC, scores_QC, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high_Q1 = np.where(there_QC, scores_QC, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    some_Q1 = high_Q1 > low_Q1
    low_Q1, range_Q1 = np.where(some_Q1, low_Q1, 0.0), np.where(some_Q1, high_Q1 - low_Q1, 1.0)
    return np.where(there_QC, np.where(some_Q1, (scores_QC - low_Q1) / range_Q1, 1.0), 0.0)
