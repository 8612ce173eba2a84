"""PromptBERT's template denoising: a prompt's own part is taken out of what the prompt gives (arXiv 2201.04337).

The mask's state of `This sentence : "TEXT" means [MASK] .` has a bias that comes of the template. The template without
text, with its positions where a text of the same length would put them, shows that bias; it is subtracted from both
views of a text before the contrastive loss. Training alone does so: an embedder uses the state as it is.

Shapes: B texts, S different lengths, L tokens of the template, D width.
"""

from __future__ import annotations

import torch


def empty_template_positions(num_before: int, num_after: int, lengths_S: torch.Tensor) -> torch.Tensor:
    """positions_SL of the template without text: what comes after the text moves on by each of the texts' lengths."""
    before_L = torch.arange(num_before, device=lengths_S.device).expand(len(lengths_S), -1)
    after_L = torch.arange(num_before, num_before + num_after, device=lengths_S.device)
    return torch.cat([before_L, after_L + lengths_S[:, None]], dim=1)


def denoised(
    states_BD: torch.Tensor, lengths_B: torch.Tensor, template_states_SD: torch.Tensor, lengths_S: torch.Tensor
) -> torch.Tensor:
    """states_BD less the template's state for a text as long; `lengths_S` ascend and have every length of `lengths_B`.

    Lengths are in tokens of the text alone. Raises ValueError where a length has no template state.
    """
    index_B = torch.searchsorted(lengths_S, lengths_B).clamp(max=len(lengths_S) - 1)
    if not torch.equal(lengths_S[index_B], lengths_B):
        missing = sorted(set(lengths_B.tolist()) - set(lengths_S.tolist()))
        raise ValueError(f"no state of the empty template for texts of {missing[:5]} tokens")
    return states_BD - template_states_SD[index_B]
