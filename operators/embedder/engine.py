"""The embedder: token ids in, vectors out, on a CPU or one GPU, the same on both.

    input_ids -> plan (sort by length, cut by budget) -> forward -> cut dims, normalise -> order restored

Nothing waits for the device between batches: results stay on it and are fetched once per call, so a call should hold
a fragment (some thousand rows). Memory: one batch's activations and N x dim floats.

Shapes: N rows of a call, D the model's width, B and L rows and padded length of a batch.
"""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
import transformers

from operators.embedder import batching, checkpoint, fast_bert, selftest
from operators.embedder.flops import Flops
from operators.embedder.pooling import PaddedForward, PooledForward
from operators.embedder.recipe import EmbedderSpec, Recipe, verified_folder
from operators.embedder.tokenizing import Tokenizer
from operators.embedder.vectors import Vectors, finish
from operators.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Embedder:
    """A loaded, self-tested model; raises InputError naming the fault where the checkpoint or recipe is wrong."""

    def __init__(
        self,
        spec: EmbedderSpec,
        batch_tokens: int | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        # huge pages for tensors of 2 MB and more, read when the process allocates its first: 5 % more tokens/s on Linux
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        self.spec = spec
        self.device = _device(device)
        tokenizer = Tokenizer(spec)
        model = _load(spec, self.device)
        _check_shapes(model, spec, tokenizer)
        self.flops = Flops.of(model)
        ids = tokenizer(selftest.texts()).input_ids
        self._forward = _make_forward(model, spec.recipe, self.device, ids)
        self.batch_tokens = batch_tokens or self._forward.batch_tokens
        selftest.check(self, ids, tokenizer.end_id)

    @torch.inference_mode()
    def __call__(self, input_ids: pa.ListArray) -> Vectors:
        """Vectors of N rows of token ids (list<int32>, no nulls), in their order."""
        lengths_N = np.diff(input_ids.offsets.to_numpy())
        plan = batching.plan(lengths_N, self.batch_tokens)
        pooled = torch.zeros(len(plan.order), self.spec.dim, device=self.device)
        for start, end, batch in zip(plan.cuts[:-1], plan.cuts[1:], batching.batches(input_ids, plan), strict=True):
            pooled[start:end] = self._forward(batch)[:, : self.spec.dim]
        values, finite = finish(pooled, self.spec.recipe.normalize)
        values_ND = np.zeros((len(input_ids), self.spec.dim), np.float32)
        finite_N = np.zeros(len(input_ids), np.bool_)
        values_ND[plan.order] = values.cpu().numpy()
        finite_N[plan.order] = finite.cpu().numpy()
        return Vectors(
            values_ND, finite_N, plan.padding_tokens if self._forward.pads else 0, self.flops.total(lengths_N)
        )


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("embedder.device is cuda, but torch finds no GPU here: set embedder.device=auto or cpu")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def _load(spec: EmbedderSpec, device: torch.device) -> transformers.PreTrainedModel:
    recipe = spec.recipe
    folder = verified_folder(spec, weights=True)
    bidirectional = recipe.attention == "bidirectional"
    dtype = DTYPES[recipe.compute_dtype]
    if device.type == "cpu" and checkpoint.read_config(folder).get("model_type") in fast_bert.FAMILIES:
        dtype = torch.float32  # `_make_forward` compares with it before it casts
    model = checkpoint.load_model(folder, dtype, bidirectional, recipe.trust_remote_code)
    model.to(device)
    return model


def _check_shapes(model: transformers.PreTrainedModel, spec: EmbedderSpec, tokenizer: Tokenizer) -> None:
    table = model.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding), f"token embeddings are a table in every text model, not {type(table)}"
    if tokenizer.max_id >= table.num_embeddings:
        raise InputError(
            f"{spec.recipe.checkpoint}: the tokenizer has ids up to {tokenizer.max_id}, "
            f"but the model has only {table.num_embeddings} token embeddings: they do not belong together"
        )


def _make_forward(
    model: transformers.PreTrainedModel, recipe: Recipe, device: torch.device, ids: pa.ListArray
) -> PooledForward:
    """The fastest forward there is for a model; the only place that chooses."""
    with torch.inference_mode():
        causal = selftest.sees_no_later_token(model, ids, device)
    if causal and recipe.attention == "bidirectional":
        raise InputError(
            f"attention: bidirectional has no effect on {recipe.checkpoint} ({model.config.model_type}): "
            "its tokens still do not see later ones"
        )
    if causal and recipe.pooling == "cls":
        raise InputError(
            f"pooling: cls gives every text the same vector: the first token of {recipe.checkpoint} sees no other"
        )
    dtype = DTYPES[recipe.compute_dtype]
    if device.type == "cpu" and fast_bert.supports(model.config, recipe.pooling):
        packed = fast_bert.pack(model, recipe.pooling, dtype)
        if packed is not None:
            return packed
    return PaddedForward(model.to(dtype), recipe.pooling, device, causal)
