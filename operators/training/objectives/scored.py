"""Losses of pairs of texts with a score or a class.

`cosine_regression` and `softmax_classification` are means over the rows they are given; `cosent` and `angle` compare
every pair of the batch with every other, so they want the global batch.

Shapes: B pairs, D width, K classes.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from operators.training.objectives.representations import full_precision, normalised, row_cosines


def softmax_classification(
    left_BD: torch.Tensor, right_BD: torch.Tensor, classes_B: torch.Tensor, classifier: torch.nn.Module
) -> torch.Tensor:
    """Cross entropy of a classifier of (u; v; |u - v|), 3 D wide, to K (Sentence-BERT, arXiv 1908.10084)."""
    left_BD, right_BD = full_precision(left_BD), full_precision(right_BD)
    logits_BK = classifier(torch.cat([left_BD, right_BD, (left_BD - right_BD).abs()], dim=1))
    return functional.cross_entropy(full_precision(logits_BK), classes_B)


def cosine_regression(left_BD: torch.Tensor, right_BD: torch.Tensor, scores_B: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of cosine and score, which is within -1 and 1 (Sentence-BERT, arXiv 1908.10084)."""
    cosines_B = row_cosines(left_BD, right_BD)
    return functional.mse_loss(cosines_B, scores_B.to(cosines_B.dtype))


def cosent(
    left_BD: torch.Tensor, right_BD: torch.Tensor, scores_B: torch.Tensor, temperature: float | torch.Tensor = 0.05
) -> torch.Tensor:
    """log(1 + sum of exp((cos_j - cos_i) / t)) over all i, j with score_i > score_j (CoSENT, TASLP 2024.3402087)."""
    return _order_loss(row_cosines(left_BD, right_BD) / temperature, scores_B)


def angle(
    left_BD: torch.Tensor, right_BD: torch.Tensor, scores_B: torch.Tensor, temperature: float | torch.Tensor = 0.05
) -> torch.Tensor:
    """CoSENT of differences of angle in place of cosines (AnglE, arXiv 2309.12871).

    The halves of a vector are the real and the imaginary part of complex numbers; of the quotient of two of those the
    parts are summed, which gives |cosine + sine|. A last dimension without partner counts as real.
    """
    left_BD, right_BD = normalised(left_BD), normalised(right_BD)
    if left_BD.shape[1] % 2:
        left_BD, right_BD = functional.pad(left_BD, (0, 1)), functional.pad(right_BD, (0, 1))
    left_real, left_imaginary = left_BD.chunk(2, dim=1)
    right_real, right_imaginary = right_BD.chunk(2, dim=1)
    sines_B = (left_imaginary * right_real - left_real * right_imaginary).sum(dim=1)
    return _order_loss(((left_BD * right_BD).sum(dim=1) + sines_B).abs() / temperature, scores_B)


def _order_loss(logits_B: torch.Tensor, scores_B: torch.Tensor) -> torch.Tensor:
    """log(1 + sum of exp(logit_j - logit_i)) over all i, j with score_i > score_j, without a B x B matrix.

    In order of scores, what i meets are all rows before those of its own score: one cumulative sum.
    """
    scores_B, order_B = scores_B.sort()
    logits_B = logits_B[order_B]
    num_lower_B = torch.searchsorted(scores_B, scores_B)
    has_lower_B = num_lower_B > 0
    lower_B = torch.logcumsumexp(logits_B, dim=0)[num_lower_B[has_lower_B] - 1]
    return torch.logsumexp(torch.cat([logits_B.new_zeros(1), lower_B - logits_B[has_lower_B]]), dim=0)
