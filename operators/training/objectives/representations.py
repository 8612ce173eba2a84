"""What all objectives are made of: unit vectors, cosines, and matrices of a batch made a block of rows at a time.

Every objective is a function of representations and computes in float32, or in float64 where it is given that. Autocast
would take its matrix products to half precision, so objectives are called outside of it.

Shapes: B rows of a batch, D width of a representation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

Objective = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""The representations of each tower, rows first -> a scalar."""


def full_precision(values: torch.Tensor) -> torch.Tensor:
    """The values in float32, or as they are in float64."""
    return values if values.dtype == torch.float64 else values.to(torch.float32)


def normalised(values_BD: torch.Tensor) -> torch.Tensor:
    """Rows (the last dimension) of length 1, in full precision; a row of zeros stays one."""
    return functional.normalize(full_precision(values_BD), dim=-1)


def row_cosines(left_BD: torch.Tensor, right_BD: torch.Tensor) -> torch.Tensor:
    """cosines_B, of row i of one with row i of the other."""
    return (normalised(left_BD) * normalised(right_BD)).sum(dim=-1)
