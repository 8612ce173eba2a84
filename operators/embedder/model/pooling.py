"""From token states to one vector per text.

Shapes: B rows, L padded length, D width of a state, S chunks, P tokens of all chunks, T places of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from operators.embedder.recipe.keywords import Pooling


def pool(
    states_BLD: torch.Tensor, mask_BL: torch.Tensor, pooling: Pooling, pooled_BL: torch.Tensor | None = None
) -> torch.Tensor:
    """pooled_BD in float32 over the tokens of `pooled_BL` (None: all); zeros for a row that has none.

    Padding (not `mask_BL`) may be on either side. `token` takes the last of the pooled tokens, as `last` does.
    """
    over_BL = mask_BL if pooled_BL is None else pooled_BL
    if pooling in ("mean", "weighted_mean"):
        # filled, since 0 * inf of padding is NaN; in float32, since bfloat16 sums lose whole tokens after 256 of them
        states_BLD = states_BLD.to(torch.float32).masked_fill(~over_BL[:, :, None], 0.0)
        if pooling == "mean":
            return states_BLD.sum(dim=1) / over_BL.sum(dim=1, keepdim=True).clamp(min=1)
        # a token's weight is its place in the row, from 1 (SGPT, arXiv 2202.08904)
        weights_BL = (mask_BL.cumsum(dim=1) * over_BL).to(torch.float32)
        return (states_BLD * weights_BL[:, :, None]).sum(dim=1) / weights_BL.sum(dim=1, keepdim=True).clamp(min=1)
    if pooling == "cls":
        token_B = over_BL.to(torch.int32).argmax(dim=1)  # argmax is the first of equals
    else:
        token_B = over_BL.shape[1] - 1 - over_BL.flip(1).to(torch.int32).argmax(dim=1)
    picked_BD = states_BLD[torch.arange(len(token_B), device=token_B.device), token_B].to(torch.float32)
    return picked_BD if pooled_BL is None else picked_BD.masked_fill(~over_BL.any(dim=1, keepdim=True), 0.0)


def pool_chunks(states_TD: torch.Tensor, places_P: torch.Tensor, begins_S: torch.Tensor) -> torch.Tensor:
    """pooled_SD in float32: the mean of the states at each chunk's places, `begins_S` being its first of them."""
    # a bag of rows of a table is summed in order and without a copy, and looks at no other row: padding may be NaN
    return F.embedding_bag(places_P, states_TD.to(torch.float32), begins_S, mode="mean")
