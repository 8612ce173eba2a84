"""Sums over blocks of rows: the plain sum with its gradients, of which each block is computed once."""

from __future__ import annotations

import pytest
import torch

from operators.training.objectives.blocks import Values, sum_of_parts, sum_over_rows

B, D = 7, 3
ROWS = slice(1, 6)


def values(seed: int) -> torch.Tensor:
    """Numbers that have a gradient."""
    return torch.randn(B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def plain(left_BD: torch.Tensor, right_BD: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(left_BD[ROWS] @ right_BD.T * scale, dim=1).sum() + (left_BD[ROWS] * right_BD[ROWS]).sum()


@pytest.mark.parametrize(("numbers", "blocks"), [(1 << 20, 1), (2 * B, 3), (1, 5)])
def test_sum_and_gradients_are_those_of_the_whole(numbers: int, blocks: int) -> None:
    left, right, scale = values(0), values(1), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    seen: list[slice] = []

    def of_block(rows: slice, own: Values, whole: Values, shared: Values) -> torch.Tensor:
        seen.append(rows)
        return torch.logsumexp(own[0] @ whole[1].T * shared[0], dim=1).sum() + (own[0] * own[1]).sum()

    found = sum_over_rows(of_block, ROWS, B, (left, right), (scale,), numbers)
    gradients = torch.autograd.grad(3 * found, (left, right, scale))
    assert len(seen) == blocks
    expected = plain(left, right, scale)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(3 * expected, (left, right, scale)))


def test_what_needs_no_gradient_has_none() -> None:
    left, right = values(0), values(1).detach()

    def of_block(_: slice, own: Values, whole: Values, __: Values) -> torch.Tensor:
        return (own[0] @ whole[1].T).square().sum()

    sum_over_rows(of_block, slice(0, B), B, (left, right), numbers=B).backward()
    assert left.grad is not None
    assert right.grad is None
    with torch.no_grad():
        assert not sum_over_rows(of_block, slice(0, B), B, (left, right), numbers=B).requires_grad


def test_a_second_backward_is_refused() -> None:
    """Gradients are scaled in place: a graph that is kept would give wrong ones."""
    left = values(0)
    found = sum_over_rows(lambda _, own, whole, __: (own[0] @ whole[0].T).sum(), slice(0, B), B, (left,), numbers=B)
    found.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.backward()


@pytest.mark.parametrize(("numbers", "calls"), [(1 << 20, 1), (2 * D, 8)])
def test_parts_give_modules_their_gradients(numbers: int, calls: int) -> None:
    states, head = values(0), torch.nn.Linear(D, D, dtype=torch.float64)
    seen: list[int] = []

    def of_part(states_PD: torch.Tensor) -> torch.Tensor:
        seen.append(len(states_PD))
        return torch.logsumexp(head(states_PD), dim=1).sum()

    found = sum_of_parts(of_part, (states,), D, numbers)
    gradients = torch.autograd.grad(found, (states, head.weight))
    assert len(seen) == calls  # four parts, each again in backward
    expected = torch.logsumexp(head(states), dim=1).sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (states, head.weight)))
