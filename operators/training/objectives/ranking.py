"""Losses of a query's scored candidates: what a cross-encoder, a judge or a larger embedder said of each.

All are means over the queries they are given. `present_BK` is False where a query has fewer than K candidates.

Shapes: B queries, K candidates of a query, D width.
"""

from __future__ import annotations

from typing import Literal

import torch

from operators.training.objectives.representations import full_precision, normalised


def candidate_scores(
    queries_BD: torch.Tensor, candidates_BKD: torch.Tensor, similarity: Literal["cosine", "dot"] = "cosine"
) -> torch.Tensor:
    """scores_BK of each query's own candidates."""
    ready = normalised if similarity == "cosine" else full_precision
    return torch.einsum("bd,bkd->bk", ready(queries_BD), ready(candidates_BKD))


def margin_mse(
    student_BK: torch.Tensor, teacher_BK: torch.Tensor, present_BK: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared difference of margins between the first candidate and each other one (arXiv 2010.02666).

    Teacher scores want the scale of the student's; cross-encoder logits go with `dot`, not with cosines.
    """
    difference_BK = (student_BK[:, :1] - student_BK[:, 1:]) - (teacher_BK[:, :1] - teacher_BK[:, 1:])
    if present_BK is None:
        return difference_BK.square().mean()
    present_BK = present_BK[:, :1] & present_BK[:, 1:]
    return difference_BK.masked_fill(~present_BK, 0.0).square().sum() / present_BK.sum()


def kl_divergence(
    student_BK: torch.Tensor,
    teacher_BK: torch.Tensor,
    student_temperature: float | torch.Tensor,
    teacher_temperature: float,
    present_BK: torch.Tensor | None = None,
    squared_temperature: bool = True,
) -> torch.Tensor:
    """KL(softmax(teacher / t_teacher) || softmax(student / t_student)), a mean over queries (arXiv 2010.11386).

    `squared_temperature` multiplies by t_student^2, so that the gradient's size does not depend on it (1503.02531).
    With all documents of the batch as candidates this is in-batch distillation.
    """
    student_BK = _masked(student_BK / student_temperature, present_BK).log_softmax(dim=1)
    teacher_BK = _masked(teacher_BK / teacher_temperature, present_BK).log_softmax(dim=1)
    # a probability of 0 contributes 0, where 0 * (-inf + inf) would be NaN
    difference_BK = (teacher_BK - student_BK).masked_fill(teacher_BK == -torch.inf, 0.0)
    loss = (teacher_BK.exp() * difference_BK).sum(dim=1).mean()
    return loss * student_temperature**2 if squared_temperature else loss


def list_net(
    student_BK: torch.Tensor,
    teacher_BK: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    present_BK: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross entropy of softmax(student / t) under softmax(teacher), the top-one probabilities (ListNet, ICML 2007).

    FlagEmbedding's distillation: no temperature at the teacher, and no entropy taken off.
    """
    teacher_BK = _masked(teacher_BK, present_BK).softmax(dim=1)
    student_BK = _masked(student_BK / temperature, present_BK).log_softmax(dim=1)
    return -(teacher_BK * student_BK.masked_fill(teacher_BK == 0, 0.0)).sum(dim=1).mean()


def list_mle(
    student_BK: torch.Tensor,
    teacher_BK: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    present_BK: torch.Tensor | None = None,
) -> torch.Tensor:
    """Minus the log likelihood of the teacher's order under Plackett and Luce's model (ListMLE, ICML 2008)."""
    logits_BK = _masked(full_precision(student_BK) / temperature, present_BK)
    order_BK = _masked(teacher_BK, present_BK).argsort(dim=1, descending=True, stable=True)
    ordered_BK = logits_BK.gather(1, order_BK)
    is_there_BK = ordered_BK != -torch.inf
    # what is not there comes last in the order, so from any place on the remaining ones still have a finite sum
    ordered_BK = ordered_BK.masked_fill(~is_there_BK, torch.finfo(ordered_BK.dtype).min / 2)
    remaining_BK = ordered_BK.flip(1).logcumsumexp(dim=1).flip(1)
    return (remaining_BK - ordered_BK).masked_fill(~is_there_BK, 0.0).sum(dim=1).mean()


def _masked(values_BK: torch.Tensor, present_BK: torch.Tensor | None) -> torch.Tensor:
    values_BK = full_precision(values_BK)
    return values_BK if present_BK is None else values_BK.masked_fill(~present_BK, -torch.inf)
