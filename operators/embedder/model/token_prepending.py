"""Token prepending: earlier tokens see the sentence's summary, without training (arXiv 2412.11556).

A placeholder stands before the sentence. Ahead of each of the first layers (the very first excepted) its state is set
to that of the row's last token, so that the tokens of the sentence, which see only what is before them in a causal
model, see what the layer below made of the whole. The placeholder's own embedding is random, as published, and seeded.

Shapes: B rows, L padded length, D width of a state.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from operators.embedder.recipe.recipe import Prepend
from operators.errors import InputError

if TYPE_CHECKING:
    import transformers

SEED = 0


class TokenPrepending:
    """Hooks on a decoder's layers that work inside of `on_batch`, and leave every other forward pass alone."""

    def __init__(self, model: transformers.PreTrainedModel, prepend: Prepend, placeholder_id: int) -> None:
        layers = getattr(model, "layers", None)
        if not isinstance(layers, torch.nn.ModuleList) or len(layers) < prepend.exit_layer:
            raise InputError(
                f"prepend.exit_layer {prepend.exit_layer} does not fit {model.config.model_type}: "
                f"it has {len(layers) if isinstance(layers, torch.nn.ModuleList) else 'no'} decoder layers"
            )
        self._placeholder_id = placeholder_id
        self._batch = threading.local()  # a model may be used by several threads
        _embed_placeholder(model, placeholder_id)
        for layer in layers[prepend.start_layer : prepend.exit_layer]:
            layer.register_forward_pre_hook(self._copy, with_kwargs=True)

    @contextmanager
    def on_batch(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> Iterator[None]:
        """Make the hooks work on these rows, each of which has the placeholder."""
        last_B = mask_BL.shape[1] - 1 - mask_BL.flip(1).to(torch.int32).argmax(dim=1)
        first_B = (ids_BL == self._placeholder_id).to(torch.int32).argmax(dim=1)
        self._batch.tokens = (first_B, last_B)
        try:
            yield
        finally:
            self._batch.tokens = None

    def _copy(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        tokens = getattr(self._batch, "tokens", None)
        if tokens is None:
            return None
        first_B, last_B = tokens
        states_BLD = (args[0] if args else kwargs["hidden_states"]).clone()
        rows_B = torch.arange(len(states_BLD), device=states_BLD.device)
        states_BLD[rows_B, first_B] = states_BLD[rows_B, last_B]
        return ((states_BLD, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states_BLD})


@torch.no_grad()
def _embed_placeholder(model: transformers.PreTrainedModel, placeholder_id: int) -> None:
    """Give the placeholder's id its random embedding, in a table made larger where it has to be."""
    table = model.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding), f"token embeddings are a table in every text model, not {type(table)}"
    if placeholder_id >= table.num_embeddings:
        model.resize_token_embeddings(placeholder_id + 1, mean_resizing=False)
        table = model.get_input_embeddings()
        assert isinstance(table, torch.nn.Embedding)
    random_D = torch.randn(table.embedding_dim, generator=torch.Generator().manual_seed(SEED))
    table.weight[placeholder_id] = random_D.to(table.weight)
