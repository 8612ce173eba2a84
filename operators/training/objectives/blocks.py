"""Losses over matrices too large to hold: a block of their rows at a time, so that memory grows as B, not as B x B."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

# Numbers of a similarity matrix that live at once: 4 MB in float32, of which a loss makes some eight
SIMILARITIES = 1 << 20
# The same of logits over a vocabulary: 64 MB, as a head is read anew for each block
LOGITS = 1 << 24

Values = Sequence[torch.Tensor]
OfBlock = Callable[[slice, Values, Values, Values], torch.Tensor]
"""(rows, those rows of each of the values, the values whole, what all rows share) -> the sum over the rows."""


def sum_over_rows(
    of_block: OfBlock, rows: slice, num_columns: int, values: Values, shared: Values = (), numbers: int = SIMILARITIES
) -> torch.Tensor:
    """The sum of `of_block` over blocks of `rows`, of at most `numbers` numbers of `num_columns` columns each.

    Every tensor that is to have a gradient comes in `values`, of as many rows each, or in `shared`. Gradients are made
    together with the sum, a block at a time: one block's matrices live at once, and none is computed twice.
    """
    size = max(1, numbers // num_columns)
    blocks = [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]
    if not torch.is_grad_enabled():
        sums = [of_block(one, [whole[one] for whole in values], values, shared) for one in blocks or [rows]]
        return torch.stack(sums).sum()
    total: torch.Tensor = _SumOverRows.apply(of_block, blocks or [rows], len(values), *values, *shared)  # type: ignore[no-untyped-call]
    return total


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, of_block: OfBlock, blocks: Sequence[slice], num_values: int, *tensors: torch.Tensor
    ) -> torch.Tensor:
        is_needed = ctx.needs_input_grad[3:]
        gradients = [torch.zeros_like(one) if needed else None for one, needed in zip(tensors, is_needed, strict=True)]
        whole = _leaves(tensors, gradients)
        sums = []
        for rows in blocks:
            with torch.enable_grad():
                parts = [None if one is None else one[rows] for one in gradients[:num_values]]
                own = _leaves([one[rows] for one in tensors[:num_values]], parts)
                block_sum = of_block(rows, own, whole[:num_values], whole[num_values:])
            sums.append(block_sum.detach())
            if block_sum.requires_grad:
                block_sum.backward()  # type: ignore[no-untyped-call]
        ctx.save_for_backward(*[one for one in gradients if one is not None])
        return torch.stack(sums).sum()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = iter(ctx.saved_tensors)
        return tuple(next(found).mul_(scale) if needed else None for needed in ctx.needs_input_grad)


def _leaves(tensors: Values, gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """The same numbers, where gradients end: they are added to those given."""
    leaves = []
    for one, gradient in zip(tensors, gradients, strict=True):
        leaf = one.detach().requires_grad_(gradient is not None)
        leaf.grad = gradient
        leaves.append(leaf)
    return leaves


def sum_of_parts(of_part: Callable[..., torch.Tensor], tensors: Values, num_columns: int, numbers: int) -> torch.Tensor:
    """The sum of `of_part` over parts of the tensors' rows, of at most `numbers` numbers of `num_columns` columns each.

    A part is computed again in backward, so that one part's matrices live at once, and modules that it calls have their
    gradients. One part alone is computed once.
    """
    size = max(1, numbers // num_columns)
    parts = list(zip(*(torch.split(one, size) for one in tensors), strict=True))
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.stack([of_part(*part) for part in parts]).sum()
    # nothing random happens in a loss, so there is no state to keep
    sums = [checkpoint(of_part, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.stack(sums).sum()
