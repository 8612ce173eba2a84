"""What all objectives are made of: unit vectors, cosines, and matrices of a batch made a block of rows at a time.

Every objective is a function of representations and computes in float32, or in float64 where it is given that. Autocast
would take its matrix products to half precision, so objectives are called outside of it.

Shapes: B rows of a batch, D width of a representation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Objective = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""The representations of each tower, rows first -> a scalar."""

# Numbers of a matrix that lives at once: 64 MB in float32, of which backward needs a few; larger ones gain no speed.
BLOCK_NUMBERS = 1 << 24


def full_precision(values: torch.Tensor) -> torch.Tensor:
    """The values in float32, or as they are in float64."""
    return values if values.dtype == torch.float64 else values.to(torch.float32)


def normalised(values_BD: torch.Tensor) -> torch.Tensor:
    """Rows (the last dimension) of length 1, in full precision; a row of zeros stays one."""
    return functional.normalize(full_precision(values_BD), dim=-1)


def row_cosines(left_BD: torch.Tensor, right_BD: torch.Tensor) -> torch.Tensor:
    """cosines_B, of row i of one with row i of the other."""
    return (normalised(left_BD) * normalised(right_BD)).sum(dim=-1)


def sum_over_blocks(
    of_rows: Callable[[slice], torch.Tensor], rows: slice, num_columns: int, block_numbers: int = BLOCK_NUMBERS
) -> torch.Tensor:
    """The sum of `of_rows` over blocks of `rows`, each with at most `block_numbers` numbers of `num_columns` columns.

    A block is computed again in backward, so that only one block's matrices live at a time: what makes the memory of
    a loss over B x B similarities grow as B. One block alone is computed once.
    """
    block = max(1, block_numbers // num_columns)
    blocks = [slice(start, min(start + block, rows.stop)) for start in range(rows.start, rows.stop, block)]
    if len(blocks) <= 1 or not torch.is_grad_enabled():
        return torch.stack([of_rows(one) for one in blocks or [rows]]).sum()
    # nothing random happens in a loss, so there is no state to keep
    sums = [checkpoint(of_rows, one, use_reentrant=False, preserve_rng_state=False) for one in blocks]
    return torch.stack(sums).sum()
