"""What every embedder gives back, and how it is finished: cut, normalised, rows without a vector marked.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from operators.embedder.sparse_vectors import SparseVectors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of a call, row i for input i."""

    values_ND: NDArray[np.float32]  # all zeros where not finite; D is 0 for a recipe without dense vectors
    finite_N: NDArray[np.bool_]  # False: the model gave NaN, infinity or a zero vector; reject the row
    padding_tokens: int
    flops: float = 0.0  # that the model needs for them (operators.embedder.model.flops)
    unknown_tokens: int = 0  # words that a static embedder has no vector for, left out of the mean
    sparse: SparseVectors | None = None  # where the recipe has a sparse head


def finish_numpy(pooled_ND: NDArray[np.float32], normalize: bool) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """As `finish`, of arrays."""
    norms_N = np.linalg.norm(pooled_ND.astype(np.float64), axis=1).astype(np.float32)
    finite_N: NDArray[np.bool_] = np.isfinite(norms_N) & (norms_N > 0)
    values_ND = np.where(finite_N[:, None], pooled_ND, np.float32(0))
    if normalize:
        values_ND[finite_N] /= norms_N[finite_N, None]
    return values_ND, finite_N


def finish(pooled_ND: torch.Tensor, normalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """values_ND, of length 1 where asked, and finite_N; rows with NaN, infinity or of length 0 become all zeros."""
    import torch  # here, so that this module costs nothing where no model is loaded

    # squares overflow float32 from 1e19 on, so they are summed in float64
    norms_N = torch.linalg.vector_norm(pooled_ND, dim=1, dtype=torch.float64).to(torch.float32)
    finite_N = torch.isfinite(norms_N) & (norms_N > 0)
    if normalize:
        pooled_ND = pooled_ND / norms_N[:, None]
    return torch.where(finite_N[:, None], pooled_ND, 0.0), finite_N
