"""SPLADE's vectors with gradients: log(1 + relu(logit)), the largest over a text's tokens (arXiv 2109.10086).

Shapes: B rows, L padded length, D width of a state, V size of the vocabulary.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from operators.embedder.model.forward import Trunk
from operators.embedder.tokens.batching import Batch
from operators.training.model.language_model import LanguageHead
from operators.training.objectives.blocks import LOGITS
from operators.training.objectives.representations import full_precision


class SpladeForward:
    """Tokens of a batch -> weights_BV, not below 0; the logits of some rows live at once, and again in backward."""

    def __init__(self, trunk: Trunk, head: LanguageHead) -> None:
        self._trunk, self._head = trunk, head

    def __call__(self, batch: Batch) -> torch.Tensor:
        tokens = self._trunk(batch)
        over_BL = self._trunk.to_device(torch.from_numpy(batch.pooled(self._trunk.side)))
        step = max(1, LOGITS // (over_BL.shape[1] * self._head.out_features))
        groups = zip(torch.split(tokens.states_BLD, step), torch.split(over_BL, step), strict=True)
        parts = [checkpoint(self._weights, *group, use_reentrant=False) for group in groups]
        return torch.cat(parts)

    def _weights(self, states_BLD: torch.Tensor, over_BL: torch.Tensor) -> torch.Tensor:
        logits_BLV = full_precision(self._head(states_BLD))
        # the maximum first: it changes nothing, since log(1 + relu) never falls
        largest_BV = logits_BLV.masked_fill(~over_BL[:, :, None], -torch.inf).amax(dim=1)
        return torch.log1p(torch.relu(largest_BV))
