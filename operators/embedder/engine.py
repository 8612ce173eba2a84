"""The embedder: token ids in, vectors out, on a CPU or one GPU, the same on both.

    input_ids -> readings -> plan (sort by length, cut by budget) -> forward -> head
              -> readings averaged -> cut dims, normalise -> order restored

Nothing waits for the device between batches: results stay on it and are fetched once per call, so a call should hold
a fragment (some thousand rows). Memory: one batch's activations and N x dim floats.

Shapes: N rows of a call, M readings (N times the recipe's prompts), D width of the model's vectors, B and L rows and
padded length of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from operators.embedder import selftest
from operators.embedder.model import fast_bert
from operators.embedder.model.bert_weights import FAMILIES, asks_for_no_more, read_bert
from operators.embedder.model.device import compute_dtype
from operators.embedder.model.flops import Flops
from operators.embedder.model.forward import PaddedForward, PooledForward
from operators.embedder.model.heads import load_head
from operators.embedder.model.latent_attention import load_latent_attention
from operators.embedder.recipe import checkpoint
from operators.embedder.recipe.keywords import Device
from operators.embedder.recipe.spec import EmbedderSpec, text_config, verified_folder
from operators.embedder.text_model import load_trunk, make_trunk, place, prepare
from operators.embedder.tokens import batching, known_texts, token_rows
from operators.embedder.tokens.batching import OnTokens, untold
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.tokens.windows import Windows
from operators.embedder.vectors import Vectors, finish

if TYPE_CHECKING:
    import transformers


class Embedder:
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
        self._layouts = tokenizer.layouts
        ids = tokenizer(known_texts.texts()).input_ids
        loaded = _read_fast(spec, self.device, tokenizer) or _load(spec, self.device, tokenizer, packing)
        self._forward, self._head, self.flops = loaded.forward, loaded.head, loaded.flops
        self.batch_tokens = batch_tokens or self._forward.batch_tokens
        self._check_spans(ids)
        selftest.check(self, ids)

    @torch.inference_mode()
    def __call__(self, input_ids: pa.ListArray, on_tokens: OnTokens = untold) -> Vectors:
        """Vectors of N rows of token ids (list<int32>, no nulls), in their order."""
        readings_M = token_rows.split(input_ids, len(self._layouts))
        lengths_M = np.diff(readings_M.offsets.to_numpy())
        plan = batching.plan(lengths_M, self.batch_tokens)
        pooled = torch.zeros(len(plan.order), self.spec.dim, device=self.device)
        in_batches = batching.batches(readings_M, plan, self._spans(lengths_M))
        for start, end, batch in zip(plan.cuts[:-1], plan.cuts[1:], in_batches, strict=True):
            pooled_BD = self._forward(batch)
            pooled_BD = pooled_BD if self._head is None else self._head(pooled_BD)
            pooled[start:end] = pooled_BD[:, : self.spec.dim]
            on_tokens(len(batch.ids_T))
        order = plan.order
        if len(self._layouts) > 1:
            pooled, order = self._averaged(pooled, plan.order, len(input_ids))
        return self._vectors(pooled, order, len(input_ids), plan, lengths_M)

    @torch.inference_mode()
    def of_chunks(self, windows: Windows, on_tokens: OnTokens = untold) -> Vectors:
        """Vectors of the chunks of whole documents (late chunking), in their order."""
        lengths_M = np.diff(windows.input_ids.offsets.to_numpy())
        plan = batching.plan(lengths_M, self.batch_tokens)
        pooled = torch.zeros(len(windows.spans_C2), self.spec.dim, device=self.device)
        order = np.empty(len(pooled), np.int64)
        start = 0
        for batch, chunks_S in windows.batches(plan):
            end = start + len(chunks_S)
            pooled_SD = self._forward(batch)
            pooled_SD = pooled_SD if self._head is None else self._head(pooled_SD)
            pooled[start:end] = pooled_SD[:, : self.spec.dim]
            order[start:end] = chunks_S
            on_tokens(len(batch.ids_T))
            start = end
        return self._vectors(pooled, order, len(pooled), plan, lengths_M)

    def _vectors(
        self,
        pooled: torch.Tensor,
        order: NDArray[np.int64],
        num: int,
        plan: batching.Plan,
        lengths_M: NDArray[np.int64],
    ) -> Vectors:
        """What was pooled, finished, fetched and put back in order: row i of it belongs to `order[i]` of `num`."""
        values, finite = finish(pooled, self.spec.recipe.normalize)
        values_ND = np.zeros((num, self.spec.dim), np.float32)
        finite_N = np.zeros(num, np.bool_)
        values_ND[order] = values.cpu().numpy()
        finite_N[order] = finite.cpu().numpy()
        return Vectors(
            values_ND, finite_N, plan.padding_tokens if self._forward.pads else 0, self.flops.total(lengths_M)
        )

    def _spans(self, lengths_M: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """spans_M2: the tokens of each reading that are pooled; None where it is all of them in every reading."""
        pool_over, num = self.spec.recipe.pool_over, len(self._layouts)
        if not any(layout.leaves_out(pool_over) for layout in self._layouts):
            return None
        spans_M2 = np.empty((len(lengths_M), 2), np.int64)
        for index, layout in enumerate(self._layouts):
            spans_M2[index::num] = layout.spans(lengths_M[index::num].astype(np.int64), pool_over)
        return spans_M2

    def _check_spans(self, input_ids: pa.ListArray) -> None:
        readings_M = token_rows.split(input_ids, len(self._layouts))
        lengths_M = np.diff(readings_M.offsets.to_numpy())
        spans_M2 = self._spans(lengths_M)
        if spans_M2 is not None and self.spec.recipe.pooling in ("mean", "weighted_mean", "latent_attention"):
            plan = batching.plan(lengths_M, self.batch_tokens)
            selftest.check_spans(self._forward, next(batching.batches(readings_M, plan, spans_M2)), self.spec.model)

    def _averaged(
        self, pooled: torch.Tensor, order: NDArray[np.int64], num_rows: int
    ) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """The mean of each row's readings, and which rows have any: a row has all of its readings, or none."""
        by_reading = torch.zeros(num_rows * len(self._layouts), self.spec.dim, device=self.device)
        by_reading[torch.from_numpy(order).to(self.device)] = pooled
        rows = np.unique(order // len(self._layouts))
        averaged_ND = by_reading.view(num_rows, len(self._layouts), -1).mean(dim=1)
        return averaged_ND[torch.from_numpy(rows).to(self.device)], rows


@dataclass(frozen=True, slots=True)
class _Model:
    """What an embedder runs: tokens to pooled states, what follows (None: nothing), and the arithmetic of it."""

    forward: PooledForward
    head: torch.nn.Module | None
    flops: Flops


def _read_fast(spec: EmbedderSpec, device: torch.device, tokenizer: Tokenizer) -> _Model | None:
    """The fast forward with weights straight from the checkpoint's files, which spares transformers' import: seconds.

    None where recipe or checkpoint want more than its formula, or a check against the formula fails.
    """
    recipe = spec.recipe
    folder = verified_folder(spec, weights=True)
    if (
        device.type != "cpu"
        or not asks_for_no_more(recipe)
        or not tokenizer.pools_all
        or not fast_bert.supports(checkpoint.read_config(folder), recipe.pooling)
        or (weights := read_bert(folder)) is None
    ):
        return None
    tokenizer.check_vocabulary(weights.shape.vocab_size)
    forward = fast_bert.pack_weights(weights, recipe.pooling, compute_dtype(recipe.compute_dtype, device))
    weights.release()  # the packed layers are copies; of the table of words, what texts hold comes back
    if forward is None:
        return None
    head = load_head(checkpoint.locate_root(recipe.checkpoint, recipe.revision), recipe.head)
    return _Model(forward, head, Flops.of_bert(weights.shape))


def _load(spec: EmbedderSpec, device: torch.device, tokenizer: Tokenizer, packing: bool) -> _Model:
    """Any recipe's model through transformers, with the fastest forward there is for it."""
    recipe = spec.recipe
    is_bert = text_config(verified_folder(spec, weights=False), recipe).get("model_type") in FAMILIES
    # of which a fast forward is compared with float32 before it casts
    dtype = torch.float32 if is_bert else compute_dtype(recipe.compute_dtype, device)
    model = load_trunk(spec, tokenizer, dtype, recipe.merge_adapters)
    head, flops = place(model, spec, tokenizer, device)
    return _Model(_make_forward(model, spec, device, tokenizer, packing), head, flops)


def _make_forward(
    model: transformers.PreTrainedModel, spec: EmbedderSpec, device: torch.device, tokenizer: Tokenizer, packing: bool
) -> PooledForward:
    recipe = spec.recipe
    dtype = compute_dtype(recipe.compute_dtype, device)
    may_be_fast = device.type == "cpu" and recipe.layers == (-1,) and recipe.prepend is None and tokenizer.pools_all
    if may_be_fast and fast_bert.supports(model.config.to_dict(), recipe.pooling):
        selftest.check_attention(model, recipe, tokenizer, device)
        packed = fast_bert.pack(model, recipe.pooling, dtype)
        if packed is not None:
            return packed
    trunk = make_trunk(model.to(dtype), spec, device, tokenizer, packing)
    if recipe.latent_attention is not None:
        part = recipe.latent_attention
        folder = checkpoint.locate(recipe.checkpoint, recipe.revision)
        latents = load_latent_attention(folder, part.prefix, part.heads, model.config.hidden_size)
        return PaddedForward(trunk, "mean", token_head=latents.to(device, dtype))
    return PaddedForward(trunk, recipe.pooling, tokenizer.pooled_id)
