"""The triplet loss.

Shapes: B anchors, N negatives of an anchor, D width.
"""

from __future__ import annotations

from typing import Literal

import torch

from operators.training.objectives.representations import full_precision, normalised

Distance = Literal["cosine", "euclidean"]


def triplet(
    anchors_BD: torch.Tensor,
    positives_BD: torch.Tensor,
    negatives_BND: torch.Tensor,
    margin: float,
    distance: Distance = "cosine",
    present_BN: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of relu(distance to the positive - distance to the negative + margin) over negatives (arXiv 1503.03832).

    `present_BN` is False where an anchor has fewer than N negatives.
    """
    to_positive_B1 = _distance(anchors_BD, positives_BD, distance)[:, None]
    to_negative_BN = _distance(anchors_BD[:, None], negatives_BND, distance)
    losses_BN = torch.relu(to_positive_B1 - to_negative_BN + margin)
    if present_BN is None:
        return losses_BN.mean()
    return losses_BN.masked_fill(~present_BN, 0.0).sum() / present_BN.sum()


def _distance(left: torch.Tensor, right: torch.Tensor, distance: Distance) -> torch.Tensor:
    if distance == "cosine":
        return 1.0 - (normalised(left) * normalised(right)).sum(dim=-1)
    euclidean: torch.Tensor = torch.linalg.vector_norm(full_precision(left) - full_precision(right), dim=-1)
    return euclidean
