"""A loss over the order of all pairs of similarities, in the memory of one similarity matrix.

With P = B (B - 1) / 2 similarities there are P (P - 1) / 2 comparisons: 33 million at B = 128, 2.2e12 at B = 2048.
Each is a hinge, linear in the student's similarities wherever it is above 0. So it is enough to count, for each
similarity, in how many comparisons it is the one that should be higher and in how many the lower one: the loss and its
gradient are then a weighted sum. The counts come of a merge sort along the teacher's order, in O(P log^2 P) time and
O(P) memory: 15 ms at B = 128 and 1.4 s at B = 1024 on one core.

Shapes: B rows, P similarities.
"""

from __future__ import annotations

import torch


def order_hinge(student_P: torch.Tensor, teacher_P: torch.Tensor, margin: float) -> torch.Tensor:
    """Mean over all unordered pairs of relu(margin - (student_a - student_b)), where teacher_a > teacher_b.

    Pairs that the teacher scores alike have no order: they add nothing, and count in the mean.
    """
    num_comparisons = len(student_P) * (len(student_P) - 1) // 2
    if not num_comparisons:
        return student_P.sum() * 0.0
    values_P = student_P.to(torch.float64)  # coefficients go up to P, and nearly cancel
    with torch.no_grad():
        coefficients_P, num_above_zero = _coefficients(values_P.detach(), teacher_P, margin)
    total = (coefficients_P * values_P).sum() + margin * num_above_zero
    return (total / num_comparisons).to(student_P.dtype)


def _coefficients(values_P: torch.Tensor, teacher_P: torch.Tensor, margin: float) -> tuple[torch.Tensor, int]:
    """coefficients_P: how often each is the lower one of a comparison above 0, less how often the higher one."""
    order_P = _ascending(teacher_P, values_P)
    values_P, teacher_P = values_P[order_P], teacher_P[order_P]
    as_lower_P, as_higher_P = _counts(values_P, margin)
    tied_lower_P, tied_higher_P = _tied_counts(values_P, teacher_P, margin)
    as_lower_P, as_higher_P = as_lower_P - tied_lower_P, as_higher_P - tied_higher_P
    coefficients_P = torch.empty_like(as_lower_P)
    coefficients_P[order_P] = as_lower_P - as_higher_P
    return coefficients_P, int(as_lower_P.sum())


def _ascending(teacher_P: torch.Tensor, values_P: torch.Tensor) -> torch.Tensor:
    """The order by the teacher's similarity, then by value."""
    by_value_P = values_P.argsort()
    return by_value_P[teacher_P[by_value_P].argsort(stable=True)]


def _counts(values_P: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """For each element: how many b after it have value_b - margin < its value, how many before it the other way."""
    num_values = len(values_P)
    size = 1 << (num_values - 1).bit_length()
    # padding comes last and is infinite: nothing is above it, and it is below nothing
    values = torch.nn.functional.pad(values_P, (0, size - num_values), value=torch.inf)
    as_lower, as_higher = torch.zeros_like(values, dtype=torch.int64), torch.zeros_like(values, dtype=torch.int64)
    half = 1
    while half < size:
        lower, higher = values.view(-1, 2, half).unbind(dim=1)
        bounds = (higher - margin).contiguous()  # the same numbers in both searches, so that the counts agree
        lower = lower.contiguous()
        # strictly: how many bounds lie below a value, and how many values above a bound
        as_lower.view(-1, 2, half)[:, 0] += torch.searchsorted(bounds.sort(dim=1).values, lower)
        as_higher.view(-1, 2, half)[:, 1] += half - torch.searchsorted(lower.sort(dim=1).values, bounds, right=True)
        half *= 2
    return as_lower[:num_values], as_higher[:num_values]


def _tied_counts(values_P: torch.Tensor, teacher_P: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The same counts among those that the teacher scores alike, whose values ascend."""
    is_new_P = torch.ones_like(teacher_P, dtype=torch.bool)
    is_new_P[1:] = teacher_P[1:] != teacher_P[:-1]
    group_P = is_new_P.cumsum(dim=0)
    num_groups = int(group_P[-1])
    position_P = torch.arange(len(values_P), device=values_P.device)
    if num_groups == len(values_P):
        return torch.zeros_like(position_P), torch.zeros_like(position_P)
    # one ascending row for all groups: each is moved beyond the reach of the one before
    reach = (values_P.max() - values_P.min()) + abs(margin) + 1.0
    keys_P = values_P + group_P * reach
    first_P = torch.searchsorted(keys_P, keys_P - margin, right=True)
    after_P = torch.searchsorted(keys_P - margin, keys_P)
    return (after_P - position_P - 1).clamp(min=0), (position_P - first_P).clamp(min=0)
