"""Any objective at several widths at once: vectors that can be cut."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from operators.errors import InputError
from operators.training.objectives.representations import Objective, normalised


def matryoshka(objective: Objective, dims: Sequence[int], weights: Sequence[float] | None = None) -> Objective:
    """The weighted sum of `objective` over the first d dimensions, for each d (Matryoshka, arXiv 2205.13147).

    Each prefix is brought back to length 1, as whoever cuts vectors does; weights are 1 where none are given. Raises
    InputError for dims or weights that make no sense, and for a d wider than a representation.
    """
    if not dims or len(set(dims)) < len(dims) or min(dims) < 1:
        raise InputError(f"matryoshka dims must be different positive numbers, got {list(dims)}")
    if weights is not None and len(weights) != len(dims):
        raise InputError(f"matryoshka weights: {len(weights)} given for {len(dims)} dims")
    weighted = list(zip(dims, weights or [1.0] * len(dims), strict=True))

    def over_prefixes(representations: Sequence[torch.Tensor]) -> torch.Tensor:
        narrowest = min(values.shape[-1] for values in representations)
        if max(dims) > narrowest:
            raise InputError(f"matryoshka dims go up to {max(dims)}, but a representation has {narrowest} dimensions")
        prefixes = [[normalised(values[..., :dim]) for values in representations] for dim, _ in weighted]
        losses = [weight * objective(cut) for (_, weight), cut in zip(weighted, prefixes, strict=True)]
        return torch.stack(losses).sum()

    return over_prefixes
