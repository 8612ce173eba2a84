"""Inputs and labels of masked training.

Shapes: B rows, L length.
"""

from __future__ import annotations

from typing import Literal

import torch

from operators.errors import InputError
from operators.training.objectives.language import IGNORED

Replacement = Literal["mask", "bert"]
"""What a chosen token becomes: always the mask, or BERT's 80 % mask, 10 % any token, 10 % itself (arXiv 1810.04805)."""


def mask_tokens(
    ids_BL: torch.Tensor,
    maskable_BL: torch.Tensor,
    probability: float,
    mask_id: int,
    vocabulary: int,
    generator: torch.Generator,
    replacement: Replacement = "mask",
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_BL with tokens masked at random, and labels_BL: what they were, `IGNORED` elsewhere.

    LLM2Vec (arXiv 2404.05961) masks 80 % for Mistral and 20 % for Llama, with the token `_` of a vocabulary that has no
    mask. `maskable_BL` is False for padding, special tokens and instructions; the generator is on the CPU.
    """
    if not 0 < probability <= 1:
        raise InputError(f"probability of masking must be above 0 and at most 1, got {probability:g}")
    drawn_BL = torch.rand(ids_BL.shape, generator=generator).to(ids_BL.device)
    chosen_BL = (drawn_BL < probability) & maskable_BL
    labels_BL = ids_BL.masked_fill(~chosen_BL, IGNORED)
    if replacement == "mask":
        return ids_BL.masked_fill(chosen_BL, mask_id), labels_BL
    kind_BL = torch.rand(ids_BL.shape, generator=generator).to(ids_BL.device)
    any_BL = torch.randint(vocabulary, ids_BL.shape, generator=generator).to(ids_BL.device)
    masked_BL = ids_BL.masked_fill(chosen_BL & (kind_BL < 0.8), mask_id)
    return torch.where(chosen_BL & (kind_BL >= 0.9), any_BL, masked_BL), labels_BL
