"""A language model in training: the trunk that makes vectors, and the head over the vocabulary that came with it.

Both are parts of one model of transformers, which is kept whole: it is what the run leaves behind, for generation or
for a run that goes on with it.

Shapes: 1 row, L tokens, T states, D width, V size of the vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from operators.embedder.model.loading import load_model
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.sparse.vocabulary import KINDS, PROBE_TOKENS, TOLERANCE
from operators.errors import InputError


class LanguageHead(torch.nn.Module):
    """logits_TV of states_TD: a model's own layers from its last states on."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        table = model.get_output_embeddings()
        if not isinstance(table, torch.nn.Linear):
            raise InputError(f"{type(model).__name__} has no linear layer over the vocabulary")
        self.parts = torch.nn.ModuleList(_parts(model, table))
        self.out_features = table.out_features
        self._softcap = getattr(model.config, "final_logit_softcapping", None)

    def forward(self, states_TD: torch.Tensor) -> torch.Tensor:
        """The logits, in the dtype that they are computed in."""
        values: torch.Tensor = states_TD
        for part in self.parts:
            values = part(values)
        return values if self._softcap is None else torch.tanh(values / self._softcap) * self._softcap


def load_language_model(spec: EmbedderSpec, dtype: torch.dtype) -> tuple[transformers.PreTrainedModel, LanguageHead]:
    """A recipe's whole language model on the CPU, and its head.

    Raises InputError where head and trunk are not the whole, or where the recipe is put together of several parts.
    """
    recipe = spec.recipe
    if recipe.trunk is not None or recipe.adapters:
        raise InputError(f"merge the adapters of {spec.model} first: a language model is trained as a whole checkpoint")
    kind = "mlm" if recipe.sparse is not None and recipe.sparse.head == "mlm" else "lm"
    model = load_model(verified_folder(spec, weights=True), dtype, recipe, KINDS[kind])
    head = LanguageHead(model)
    with torch.no_grad():
        ids_1L = torch.arange(PROBE_TOKENS)[None]
        whole_1LV = model(input_ids=ids_1L).logits
        parts_1LV = head(model.base_model(input_ids=ids_1L).last_hidden_state)
    difference = (parts_1LV - whole_1LV).abs().max()
    if not difference <= TOLERANCE[dtype] * whole_1LV.abs().max():
        raise InputError(
            f"{type(model).__name__} of {recipe.checkpoint} is not supported: it computes logits otherwise than by "
            f"the layers after its last states (they differ by {float(difference):.3g})"
        )
    return model, head


def causal_view(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The same modules and weights under a config that says causal.

    A model of its own rather than a switch: the attention of a model is then the same from forward to backward, which
    recomputes layers where gradients are checkpointed.
    """
    view = copy.copy(model)
    view.config = copy.deepcopy(model.config)
    view.config.is_causal = True
    return view


def _parts(model: Any, table: torch.nn.Linear) -> Sequence[torch.nn.Module]:
    """The layers of the head, in order."""
    head = next(child for child in model.children() if any(module is table for module in child.modules()))
    if head is not table:  # BERT's `cls`, RoBERTa's `lm_head`
        return [head]
    if hasattr(model, "vocab_transform"):  # DistilBERT has the steps side by side
        return [model.vocab_transform, model.activation, model.vocab_layer_norm, table]
    before = getattr(model, "head", None)  # ModernBERT's; causal models have none
    return [table] if before is None else [before, table]
