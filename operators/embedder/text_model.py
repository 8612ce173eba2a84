"""A recipe's text model before anything is embedded: loaded, checked against its tokenizer, and on its device.

Embedders of dense and of sparse vectors begin with it, and so does training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from operators.embedder import selftest
from operators.embedder.model.device import prepare_process
from operators.embedder.model.flops import Flops
from operators.embedder.model.forward import PaddedTrunk, Trunk
from operators.embedder.model.heads import load_head
from operators.embedder.model.token_prepending import TokenPrepending
from operators.embedder.recipe import checkpoint
from operators.embedder.recipe.adapter_files import locate_adapter
from operators.embedder.recipe.keywords import Device
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.tokens import known_texts
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError

if TYPE_CHECKING:
    import transformers


def prepare(spec: EmbedderSpec, device: Device, threads: int | None) -> tuple[torch.device, Tokenizer]:
    """The device and the tokenizer of an embedder of texts, checked before its model is loaded."""
    found = prepare_process(device, threads)
    tokenizer = Tokenizer(spec)
    known_texts.check_tokens(tokenizer, spec)
    known_texts.check_prompts(tokenizer, spec)
    return found, tokenizer


def load_trunk(
    spec: EmbedderSpec, tokenizer: Tokenizer, dtype: torch.dtype, merge_adapters: bool
) -> transformers.PreTrainedModel:
    """The text model on the CPU, its adapters applied; all but the last are merged into its weights anyway."""
    from operators.embedder.model.loading import load_model  # transformers' modelling code: seconds

    recipe = spec.recipe
    model = load_model(verified_folder(spec, weights=True), dtype, recipe)
    for i, name in enumerate(recipe.adapters, start=1):
        from operators.embedder.model.adapters import apply_adapter  # peft: a second, for the few recipes that need it

        merge = merge_adapters or i < len(recipe.adapters)
        model = apply_adapter(model, locate_adapter(name), merge, selftest.probe_ids(tokenizer))
    return model


def place(
    model: transformers.PreTrainedModel, spec: EmbedderSpec, tokenizer: Tokenizer, device: torch.device
) -> tuple[torch.nn.Module | None, Flops]:
    """Check a model and move it to the device: what follows pooling there (None for nothing), and what a pass costs."""
    check_shapes(model, spec, tokenizer)
    root = checkpoint.locate_root(spec.recipe.checkpoint, spec.recipe.revision)
    head = load_head(root, spec.recipe.head, model)
    model.to(device)
    return None if head is None else head.to(device), Flops.of(model)


def check_shapes(model: transformers.PreTrainedModel, spec: EmbedderSpec, tokenizer: Tokenizer) -> None:
    """Raise InputError for a model that lacks layers of the recipe, or embeddings of the tokenizer's ids."""
    table = model.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding), f"token embeddings are a table in every text model, not {type(table)}"
    num_layers = int(model.config.num_hidden_layers)
    for layer in spec.recipe.layers:
        if not -num_layers - 1 <= layer <= num_layers:
            raise InputError(f"layers: {layer} is not there: {spec.recipe.checkpoint} has {num_layers} layers")
    tokenizer.check_vocabulary(table.num_embeddings)


def make_trunk(
    model: transformers.PreTrainedModel,
    spec: EmbedderSpec,
    device: torch.device,
    tokenizer: Tokenizer,
    packing: bool,
) -> Trunk:
    """The trunk of a recipe's model, checked: padded, or packed where that is asked for."""
    recipe = spec.recipe
    prepending = None
    if recipe.prepend is not None:
        if packing:
            raise InputError(f"leave out embedder.packing: {spec.model} prepends tokens, which needs rows")
        prepending = TokenPrepending(model, recipe.prepend, tokenizer.token_id(recipe.prepend.token))
        selftest.check_prepending(model, prepending, tokenizer, device)
    causal = selftest.check_attention(model, recipe, tokenizer, device)
    padded = PaddedTrunk(model, device, causal, recipe.padding, recipe.layers, prepending)
    if not packing:
        return padded
    from operators.embedder.model.packing import pack  # transformers too

    probe = selftest.probe_batch(tokenizer, recipe, model.config)
    return pack(padded, probe, selftest.MIN_COSINE[recipe.compute_dtype])
