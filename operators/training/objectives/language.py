"""Language modelling beside or before contrastive training: causal, masked, and GRIT's sum of both kinds of loss.

A position's label is predicted from the state before it, for masked tokens too (LLM2Vec, arXiv 2404.05961); positions
with `IGNORED` are not predicted. Every loss is a share: what this call has of the sum over the whole batch, divided by
a total of the whole batch, so that neither the number of ranks nor of accumulated micro-batches changes anything.

Shapes: B rows, L length, D width of a state, V words of the vocabulary, T predicted tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from operators.training.config.language import Weighting
from operators.training.objectives.blocks import LOGITS, sum_of_parts
from operators.training.objectives.representations import full_precision

IGNORED = -100
LARGE_VOCABULARY = 1 << 17  # for blocks of a head that does not tell its width: few models have more words


@dataclass(frozen=True, slots=True)
class Targets:
    """How much there is to predict in a batch; of ranks and micro-batches they add up."""

    num_tokens: int
    num_samples: int  # texts with at least one token to predict

    def __add__(self, other: Targets) -> Targets:
        return Targets(self.num_tokens + other.num_tokens, self.num_samples + other.num_samples)


def count_targets(labels_BL: torch.Tensor) -> Targets:
    """The targets of a batch; the first position of a row has no state before it."""
    per_row_B = (labels_BL[:, 1:] != IGNORED).sum(dim=1)
    return Targets(int(per_row_B.sum()), int((per_row_B > 0).sum()))


def next_token(
    states_BLD: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    labels_BL: torch.Tensor,
    weighting: Weighting = "token",
    whole: Targets | None = None,
    block_numbers: int = LOGITS,
    vocabulary: int | None = None,
) -> torch.Tensor:
    """The share of this batch in the cross entropy of its labels; `whole` are the targets of the whole batch.

    `head` makes logits_TV of states_TD, for the predicted positions alone and a block of them at a time: logits of a
    whole batch would be by far its largest tensor. V chooses the block; None: the head's `out_features`.
    """
    whole = count_targets(labels_BL) if whole is None else whole
    row_T, position_T = torch.nonzero(labels_BL[:, 1:] != IGNORED, as_tuple=True)
    if not len(row_T):
        return full_precision(states_BLD).sum() * 0.0  # a rank without targets still takes part in backward
    states_TD, targets_T = states_BLD[row_T, position_T], labels_BL[row_T, position_T + 1]
    weights_T = _weights(row_T, labels_BL, weighting, whole)

    def of_part(states_PD: torch.Tensor, targets_P: torch.Tensor, weights_P: torch.Tensor) -> torch.Tensor:
        losses_P = functional.cross_entropy(full_precision(head(states_PD)), targets_P, reduction="none")
        return (losses_P * weights_P).sum()

    width = vocabulary or int(getattr(head, "out_features", LARGE_VOCABULARY))
    return sum_of_parts(of_part, (states_TD, targets_T, weights_T), width, block_numbers)


def _weights(row_T: torch.Tensor, labels_BL: torch.Tensor, weighting: Weighting, whole: Targets) -> torch.Tensor:
    if weighting == "sample":
        per_row_B = (labels_BL[:, 1:] != IGNORED).sum(dim=1)
        return 1.0 / (per_row_B[row_T].to(torch.float32) * whole.num_samples)
    total = whole.num_tokens if weighting == "token" else whole.num_samples
    return torch.full(row_T.shape, 1.0 / total, device=row_T.device)


def grit(representation: torch.Tensor, language: torch.Tensor, balance: float) -> torch.Tensor:
    """Representation and generation in one model: L_rep + balance * L_gen (GritLM, arXiv 2402.09906).

    Both are shares whose sum over ranks is the loss. Where one is a mean per rank and the other is gathered without
    that care, the balance depends on the number of GPUs, as it does in the published code.
    """
    return representation + balance * language
