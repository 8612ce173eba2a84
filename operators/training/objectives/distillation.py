"""Losses that bring a student's vectors to a teacher's; teachers' vectors carry no gradient.

`cosine_distance` and `embedding_mse` are means over the rows they are given; the others compare every row of the batch
with every other, so they want the global batch.

Shapes: B texts, S width of the student, T width of the teacher, P similarities of two different texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from operators.errors import InputError
from operators.training.objectives.blocks import SIMILARITIES, Values, sum_over_rows
from operators.training.objectives.ordering import order_hinge
from operators.training.objectives.representations import (
    full_precision,
    normalised,
    row_cosines,
)


def concatenated_teachers(teachers: Sequence[torch.Tensor], weights: Sequence[float] | None = None) -> torch.Tensor:
    """One teacher of several: unit vectors whose cosine is the weighted mean of the teachers' cosines (Jasper and
    Stella, arXiv 2412.19048)."""
    if not teachers or (weights is not None and (len(weights) != len(teachers) or min(weights) <= 0)):
        raise InputError(f"teachers: weights must be positive, one each, got {weights} for {len(teachers)} teachers")
    weights = weights or [1.0] * len(teachers)
    factors = [math.sqrt(weight / sum(weights)) for weight in weights]
    return torch.cat([factor * normalised(teacher) for factor, teacher in zip(factors, teachers, strict=True)], dim=1)


def cosine_distance(student_BT: torch.Tensor, teacher_BT: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cosine of a text's two vectors (arXiv 2412.19048, first loss)."""
    return (1.0 - row_cosines(student_BT, teacher_BT)).mean()


def embedding_mse(
    student_BS: torch.Tensor, teacher_BT: torch.Tensor, projection: torch.nn.Module | None = None
) -> torch.Tensor:
    """Mean squared difference of vectors as they are (arXiv 2004.09813); `projection` where S and T differ."""
    projected_BT = student_BS if projection is None else projection(student_BS)
    if projected_BT.shape != teacher_BT.shape:
        raise InputError(
            f"the student's vectors have {projected_BT.shape[1]} dimensions and the teacher's {teacher_BT.shape[1]}: "
            "a projection to the teacher's width is needed"
        )
    projected_BT = full_precision(projected_BT)
    return functional.mse_loss(projected_BT, teacher_BT.to(projected_BT.dtype))


def similarity_mse(
    student_BS: torch.Tensor, teacher_BT: torch.Tensor, block_numbers: int = SIMILARITIES
) -> torch.Tensor:
    """Mean squared difference of the two matrices of cosines within the batch (arXiv 1907.09682, 2412.19048)."""
    student_BS, teacher_BT = normalised(student_BS), normalised(teacher_BT)
    num_texts = len(student_BS)

    def of_block(rows: slice, own: Values, whole: Values, _: Values) -> torch.Tensor:
        student_RS, teacher_RT = own
        return (student_RS @ whole[0].T - teacher_RT @ whole[1].T).square().sum()

    values = (student_BS, teacher_BT)
    return sum_over_rows(of_block, slice(0, num_texts), num_texts, values, numbers=block_numbers) / num_texts**2


def similarity_order(student_BS: torch.Tensor, teacher_BT: torch.Tensor, margin: float = 0.015) -> torch.Tensor:
    """The order of all similarities within the batch: mean hinge over every two of them (arXiv 2412.19048, third loss).

    O(B^2) memory, where the published code takes O(B^4); see `operators.training.objectives.ordering`.
    """
    return order_hinge(_similarities(student_BS), _similarities(teacher_BT), margin)


def _similarities(vectors_BD: torch.Tensor) -> torch.Tensor:
    """cosines_P of each two different rows."""
    vectors_BD = normalised(vectors_BD)
    above_BB = torch.ones(len(vectors_BD), len(vectors_BD), dtype=torch.bool, device=vectors_BD.device).triu(1)
    return (vectors_BD @ vectors_BD.T)[above_BB]


@dataclass(frozen=True, slots=True, kw_only=True)
class StellaWeights:
    """Weights of the three losses, and the margin of the third, as the published training has them."""

    cosine: float = 10.0
    similarity: float = 200.0
    order: float = 20.0
    margin: float = 0.015


def stella(
    student_BS: torch.Tensor,
    teacher_BT: torch.Tensor,
    dims: Sequence[int] = (),
    weights: StellaWeights | None = None,
    projected_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Stella's distillation (arXiv 2412.19048): the cosine at full width, the two of similarities averaged over `dims`.

    The student's vectors are cut to each of `dims` (none: the full width) and compared with the whole teacher; the
    cosine is that of `projected_BT` where the student is not as wide as its teacher.
    """
    weights = weights or StellaWeights()
    width = student_BS.shape[1]
    if max(dims, default=width) > width:
        raise InputError(f"dims go up to {max(dims)}, but the student's vectors have {width} dimensions")
    total = weights.cosine * cosine_distance(student_BS if projected_BT is None else projected_BT, teacher_BT)
    for dim in dims or (width,):
        cut = student_BS[:, :dim]
        pairwise = weights.similarity * similarity_mse(cut, teacher_BT)
        pairwise = pairwise + weights.order * similarity_order(cut, teacher_BT, weights.margin)
        total = total + pairwise / len(dims or (width,))
    return total
