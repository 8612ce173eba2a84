"""A rank's texts in micro-batches of similar length, by a budget of padded tokens, and their order again afterwards.

Shapes: N texts of a rank, D dims of a representation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.embedder.tokens.batching import plan


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """How N texts are cut; micro-batch i has the texts `rows[i]`, longest first."""

    rows: tuple[NDArray[np.int64], ...]
    padding_tokens: int  # that a forward which pads computes for nothing

    def restored(self, parts_D: Sequence[Tensor]) -> Tensor:
        """values_ND in the texts' own order, of the micro-batches' values; gradients pass through."""
        order = torch.from_numpy(np.argsort(np.concatenate(self.rows)))
        parts_ND = torch.cat(list(parts_D))
        return parts_ND[order.to(parts_ND.device)]


def micro_batches(lengths_N: NDArray[np.int64], budget_tokens: int) -> MicroBatches:
    """Cut texts of so many tokens each (at least one) into micro-batches of at most `budget_tokens` padded tokens.

    A longer text is alone in its own. The longest come first, so that what does not fit in memory is found at once.
    """
    assert lengths_N.min(initial=1) > 0, "a text has a token: its end, or its prompt"
    found = plan(lengths_N, budget_tokens)
    rows = [found.order[start:end] for start, end in zip(found.cuts[:-1], found.cuts[1:], strict=True)]
    padded = sum(len(part) * int(lengths_N[part[0]]) for part in rows)
    return MicroBatches(tuple(rows), padded - int(lengths_N.sum()))
