"""A language model taken apart: the trunk, and the head that turns its states into logits over the vocabulary.

A batch's logits are B x L x V numbers, gigabytes for one batch of a modern vocabulary, and only their largest over the
tokens are wanted. So the head multiplies with a slice of the vocabulary at a time and keeps the maxima; that this is
what the whole model computes is checked when it is loaded.

Shapes: B rows, L padded length, D width of a state, V size of the vocabulary, v of a slice of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from operators.embedder.model.loading import load_model
from operators.embedder.recipe.recipe import Recipe
from operators.errors import InputError

LOGITS_AT_ONCE = 1 << 25  # 128 MB in float32
PROBE_TOKENS = 8
# of the largest logit, between the model as a whole and in parts: the same products in the same order, but for slices
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
KINDS = {"mlm": transformers.AutoModelForMaskedLM, "lm": transformers.AutoModelForCausalLM}


class VocabularyHead:
    """Token states -> the largest logit of every id over some of the tokens."""

    def __init__(self, model: Any) -> None:
        table = model.get_output_embeddings()
        if not isinstance(table, torch.nn.Linear):
            raise InputError(f"sparse.head: {type(model).__name__} has no linear layer over the vocabulary")
        self._weight_VD, self._bias_V = table.weight, table.bias
        self._transform = _before_table(model, table)
        self._softcap = getattr(model.config, "final_logit_softcapping", None)

    @property
    def size(self) -> int:
        """How many ids the vocabulary has."""
        return int(self._weight_VD.shape[0])

    def largest(self, states_BLD: torch.Tensor, over_BL: torch.Tensor) -> torch.Tensor:
        """logits_BV float32, the largest over the tokens of `over_BL`; -inf for a row that has none."""
        states_BLD = self._transform(states_BLD)
        rows, length = over_BL.shape
        largest_BV = torch.empty(rows, self.size, device=states_BLD.device)
        step = max(1, LOGITS_AT_ONCE // (rows * length))
        for start in range(0, self.size, step):
            ids = slice(start, start + step)
            bias_v = None if self._bias_V is None else self._bias_V[ids]
            logits_BLv = F.linear(states_BLD, self._weight_VD[ids], bias_v)
            largest_BV[:, ids] = logits_BLv.masked_fill_(~over_BL[:, :, None], -torch.inf).amax(dim=1)
        if self._softcap is not None:
            largest_BV = torch.tanh(largest_BV / self._softcap) * self._softcap
        return largest_BV


@torch.inference_mode()
def load_parts(
    folder: Path, dtype: torch.dtype, recipe: Recipe, device: torch.device
) -> tuple[transformers.PreTrainedModel, VocabularyHead]:
    """Trunk and head of a language model; raises InputError where the two together are not the whole."""
    assert recipe.sparse is not None, "the recipe has a sparse head"
    kind = KINDS["mlm" if recipe.sparse.head == "mlm" else "lm"]
    model = load_model(folder, dtype, recipe, kind).to(device)
    trunk = model.base_model
    ids_1L = torch.arange(PROBE_TOKENS, device=device)[None]
    whole_1LV = model(input_ids=ids_1L).logits.to(torch.float32)
    head = VocabularyHead(model)
    states_1LD = trunk(input_ids=ids_1L).last_hidden_state
    every_1L = torch.ones_like(ids_1L, dtype=torch.bool)
    difference = (head.largest(states_1LD, every_1L) - whole_1LV.amax(dim=1)).abs().max()
    if not difference <= TOLERANCE[dtype] * whole_1LV.abs().max():
        raise InputError(
            f"sparse.head: {recipe.sparse.head} is not supported for {recipe.checkpoint}: its {type(model).__name__} "
            f"computes logits otherwise than by a layer over the vocabulary (they differ by {float(difference):.3g})"
        )
    return trunk, head


def _before_table(model: Any, table: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a model does to its last states before the layer over the vocabulary, which is taken out of it."""
    head = next(child for child in model.children() if any(module is table for module in child.modules()))
    if head is not table:  # BERT's `cls`, RoBERTa's `lm_head`
        for parent in head.modules():
            for name, child in parent.named_children():
                if child is table:
                    setattr(parent, name, torch.nn.Identity())
        result: Callable[[torch.Tensor], torch.Tensor] = head
        return result
    if hasattr(model, "vocab_transform"):  # DistilBERT has the steps side by side
        return lambda states: model.vocab_layer_norm(model.activation(model.vocab_transform(states)))
    return getattr(model, "head", None) or torch.nn.Identity()  # ModernBERT's `head`; causal models have none
