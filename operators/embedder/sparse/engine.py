"""The embedder of recipes with a sparse head: token ids in, dense and sparse vectors out, of a single forward pass.

As operators.embedder.engine, with one reading of a text; memory is besides a slice of a batch's logits and the entries
of N sparse vectors.

Shapes: N rows of a call, D width of a dense vector (0: there is none), B rows and L padded length of a batch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import torch
import transformers

from operators.embedder import selftest
from operators.embedder.model.device import compute_dtype
from operators.embedder.model.forward import PaddedForward
from operators.embedder.model.loading import load_model
from operators.embedder.recipe import checkpoint
from operators.embedder.recipe.keywords import Device, PoolOver
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.sparse.heads import Entries, Head, NextWordHead, SpladeHead, TokenWeightsHead, gathered
from operators.embedder.sparse.vocabulary import load_parts
from operators.embedder.sparse.words import WordsInText
from operators.embedder.text_model import make_trunk, place, prepare
from operators.embedder.tokens import batching, known_texts
from operators.embedder.tokens.batching import Batch, OnTokens, untold
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vectors import Vectors, finish
from operators.errors import InputError


class SparseEmbedder:
    """A loaded, self-tested model; raises InputError naming the fault where the checkpoint or recipe is wrong."""

    def __init__(
        self,
        spec: EmbedderSpec,
        batch_tokens: int | None = None,
        device: Device = "auto",
        threads: int | None = None,
        packing: bool = False,
    ) -> None:
        self.spec = spec
        self.device, tokenizer = prepare(spec, device, threads)
        self._layout = tokenizer.layouts[0]
        model, self._sparse = _load(spec, self.device, tokenizer)
        self._head, self.flops = place(model, spec, tokenizer, self.device)
        self._width = int(model.get_input_embeddings().embedding_dim)
        self._trunk = make_trunk(model, spec, self.device, tokenizer, packing)
        self._dense = PaddedForward(self._trunk, spec.recipe.pooling, tokenizer.pooled_id)
        self.batch_tokens = batch_tokens or self._trunk.batch_tokens
        selftest.check(self, tokenizer(known_texts.texts()).input_ids)

    @torch.inference_mode()
    def __call__(self, input_ids: pa.ListArray, on_tokens: OnTokens = untold) -> Vectors:
        """Vectors of N rows of token ids (list<int32>, no nulls), in their order."""
        sparse, recipe = self.spec.recipe.sparse, self.spec.recipe
        assert sparse is not None, "this embedder is chosen for sparse recipes"
        lengths_N = np.diff(input_ids.offsets.to_numpy()).astype(np.int64)
        plan = batching.plan(lengths_N, self.batch_tokens)
        pooled = torch.zeros(len(plan.order), self.spec.dim, device=self.device)
        parts: list[Entries] = []
        for start, end, batch in zip(plan.cuts[:-1], plan.cuts[1:], batching.batches(input_ids, plan), strict=True):
            tokens = self._trunk(batch)
            parts += self._sparse(batch, tokens, self._over(batch, sparse.pool_over))
            if self.spec.dim:
                pooled_BD = self._dense.pooled(self._spanned(batch, recipe.pool_over), tokens)
                pooled_BD = pooled_BD if self._head is None else self._head(pooled_BD)
                pooled[start:end] = pooled_BD[:, : self.spec.dim]
            on_tokens(len(batch.ids_T))
        entries, sound = gathered(parts)
        values_ND = np.zeros((len(input_ids), self.spec.dim), np.float32)
        finite_N = np.zeros(len(input_ids), np.bool_)
        if self.spec.dim:
            values, finite = finish(pooled, recipe.normalize)
            values_ND[plan.order] = values.cpu().numpy()
            finite_N[plan.order] = sound & finite.cpu().numpy()
        else:
            finite_N[plan.order] = sound & (entries.lengths_N > 0)
        flops = self.flops.total(lengths_N) + sparse.flops(lengths_N, self.spec.sparse_dim, self._width)
        vectors = entries.placed(plan.order, len(input_ids))
        padding_tokens = plan.padding_tokens if self._trunk.pads else 0
        return Vectors(values_ND, finite_N, padding_tokens, flops, sparse=vectors)

    def _spanned(self, batch: Batch, pool_over: PoolOver) -> Batch:
        if not self._layout.leaves_out(pool_over):
            return batch
        return dataclasses.replace(batch, spans_B2=self._layout.spans(batch.lengths_B, pool_over))

    def _over(self, batch: Batch, pool_over: PoolOver) -> torch.Tensor:
        pooled_BL = self._spanned(batch, pool_over).pooled(self._trunk.side)
        return self._trunk.to_device(torch.from_numpy(pooled_BL))


def _load(spec: EmbedderSpec, device: torch.device, tokenizer: Tokenizer) -> tuple[transformers.PreTrainedModel, Head]:
    """The trunk and the sparse head on it."""
    recipe = spec.recipe
    assert recipe.sparse is not None, "this embedder is chosen for sparse recipes"
    folder, dtype = verified_folder(spec, weights=True), compute_dtype(recipe.compute_dtype, device)
    if recipe.sparse.head == "token_weights":
        model = load_model(folder, dtype, recipe).to(device)
        root = checkpoint.locate_root(recipe.checkpoint, recipe.revision)
        width = int(model.get_input_embeddings().embedding_dim)
        head = TokenWeightsHead(root, width, spec.sparse_dim, tokenizer.special_ids, recipe.sparse)
        return model, head.to(device)
    trunk, vocabulary = load_parts(folder, dtype, recipe, device)
    if vocabulary.size != spec.sparse_dim:
        raise InputError(
            f"{folder} does not fit its config.json: its head has {vocabulary.size} ids, vocab_size is "
            f"{spec.sparse_dim}"
        )
    if recipe.sparse.head == "next_word":
        return trunk, NextWordHead(vocabulary, recipe.sparse, WordsInText(tokenizer, recipe.sparse.stop_words))
    return trunk, SpladeHead(vocabulary, recipe.sparse)
