"""The regularisation of sparse vectors in a training step: FLOPS of queries and of documents, ramped up.

Shapes: N texts of a rank, V words of the vocabulary.
"""

from __future__ import annotations

import torch

from operators.training.config.flops import FlopsRegularisation
from operators.training.objectives.gathering import RankRows, sum_over_ranks
from operators.training.objectives.sparse import flops_of_means, quadratic_ramp


class Sparsity:
    """The share of this rank in the regularisation of the global batch."""

    def __init__(self, config: FlopsRegularisation, num_steps: int) -> None:
        self._config = config
        self._ramp = config.ramp_steps or max(1, num_steps // 3)

    def __call__(self, weights_NV: torch.Tensor, rows: RankRows, step: int) -> torch.Tensor:
        """Of a rank's texts, its queries first. FLOPS are of means over the batch, so that ranks meet before them."""
        num_queries = rows.sizes[rows.rank]
        total = weights_NV.new_zeros(())
        for weight, part_NV in (
            (self._config.query, weights_NV[:num_queries]),
            (self._config.document, weights_NV[num_queries:]),
        ):
            means_V = sum_over_ranks(part_NV.abs().mean(dim=0) * rows.share)
            total = total + quadratic_ramp(step, self._ramp, weight) * flops_of_means(means_V)
        return total * rows.share
