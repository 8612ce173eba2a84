"""What keeps sparse vectors sparse.

Shapes: B rows, V words of the vocabulary.
"""

from __future__ import annotations

import torch

from operators.training.objectives.representations import full_precision


def flops(weights_BV: torch.Tensor) -> torch.Tensor:
    """Sum over words of the squared mean absolute weight: the work that an inverted index has (arXiv 2004.05665)."""
    return flops_of_means(full_precision(weights_BV).abs().mean(dim=0))


def flops_of_means(means_V: torch.Tensor) -> torch.Tensor:
    """The same from the means of the global batch, which are cheaper to bring together than its rows."""
    return means_V.square().sum()


def quadratic_ramp(step: int, num_steps: int, weight: float) -> float:
    """A regulariser's weight at a step (from 0), full from `num_steps` on (SPLADE, arXiv 2107.05720; 50,000 there)."""
    return weight * min(1.0, step / num_steps) ** 2 if num_steps > 0 else weight
