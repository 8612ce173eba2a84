"""What every kind of embedder begins with: the process, the device, a tokenizer that keeps what a recipe states."""

from __future__ import annotations

import os
from typing import Literal

import torch
import transformers

from operators.embedder import selftest
from operators.embedder.model.heads import load_head
from operators.embedder.recipe import checkpoint
from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError

Device = Literal["auto", "cpu", "cuda"]


def prepare(spec: EmbedderSpec, device: Device, threads: int | None) -> tuple[torch.device, Tokenizer]:
    """The device and the tokenizer of an embedder of texts, checked before its model is loaded."""
    found = prepare_process(device, threads)
    tokenizer = Tokenizer(spec)
    selftest.check_tokens(tokenizer, spec)
    selftest.check_prompts(tokenizer, spec)
    return found, tokenizer


def prepare_process(device: Device, threads: int | None) -> torch.device:
    """The device to compute on, with `threads` of torch, None for its own choice; raises InputError without a GPU."""
    if threads is not None:
        torch.set_num_threads(threads)
    # huge pages for tensors of 2 MB and more, read when the process allocates its first: 5 % more tokens/s on Linux
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("embedder.device is cuda, but torch finds no GPU here: set embedder.device=auto or cpu")
    return torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def load_dense_head(
    spec: EmbedderSpec, model: transformers.PreTrainedModel, device: torch.device
) -> torch.nn.Module | None:
    """What follows pooling in a recipe, on the device; None for nothing."""
    root = checkpoint.locate_root(spec.recipe.checkpoint, spec.recipe.revision)
    head = load_head(root, spec.recipe.head, model)
    return None if head is None else head.to(device)


def check_vocabulary(num_embeddings: int, spec: EmbedderSpec, tokenizer: Tokenizer) -> None:
    """Raise InputError for a tokenizer with ids that a model of texts has no embeddings for."""
    if tokenizer.max_id >= num_embeddings:
        raise InputError(
            f"{spec.recipe.checkpoint}: the tokenizer has ids up to {tokenizer.max_id}, "
            f"but the model has only {num_embeddings} token embeddings: they do not belong together"
        )
