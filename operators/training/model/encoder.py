"""The trainable form of an embedder: the same templates, tokens, pooling and head as `Embedder`, with gradients.

Shapes: N texts, B and L rows and padded length of a micro-batch, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
import transformers
from numpy.typing import NDArray

from operators.embedder import selftest
from operators.embedder.model.forward import PaddedForward, PaddedTrunk, TokenStates, hidden_states
from operators.embedder.model.heads import load_head
from operators.embedder.model.latent_attention import load_latent_attention
from operators.embedder.recipe import checkpoint
from operators.embedder.recipe.keywords import PoolOver
from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.text_model import check_shapes, load_trunk
from operators.embedder.tokens.batching import Batch
from operators.embedder.tokens.token_rows import Layout
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from operators.training.config.tuning import Tuning
from operators.training.model.language_model import LanguageHead, causal_view, load_language_model
from operators.training.model.sharding import one_rank_at_a_time, rank_mesh, shard
from operators.training.model.splade import SpladeForward
from operators.training.model.tuned import loading_dtype, merged, tuned

Role = Literal["query", "document"]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Texts as the model reads them, each in the template of its role."""

    ids: Sequence[NDArray[np.int64]]
    spans_N2: NDArray[np.int64] | None  # tokens that are pooled; None: all
    texts_N2: NDArray[np.int64]  # the text's own tokens, without prompt and special tokens

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Some of them as a batch, in this order."""
        chosen = [self.ids[row] for row in rows]
        lengths_B = np.array([len(ids) for ids in chosen], np.int64)
        return Batch(np.concatenate(chosen), lengths_B, None if self.spans_N2 is None else self.spans_N2[rows])


class Reader:
    """Texts of each role to token ids; one template a role, since a vector of several has no one gradient path."""

    def __init__(self, specs: Mapping[Role, EmbedderSpec]) -> None:
        for role, spec in specs.items():
            if len(spec.templates) != 1:
                raise InputError(f"give one prompt for the role {role}: averages of several are not trained")
        self._tokenizers = {role: Tokenizer(spec) for role, spec in specs.items()}
        self._pool_over = {role: _pool_over(spec) for role, spec in specs.items()}
        self._max_tokens = max(spec.recipe.max_tokens for spec in specs.values())

    def __call__(self, texts: Sequence[str], roles: Sequence[Role]) -> Tokenized:
        """Token ids and pooled spans of N texts."""
        ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(texts)
        spans_N2, texts_N2 = np.zeros((2, len(texts), 2), np.int64)
        is_cut = False
        for role, tokenizer in self._tokenizers.items():
            rows = [row for row, own in enumerate(roles) if own == role]
            column = tokenizer(pa.array([texts[row] for row in rows], pa.string())).input_ids
            lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
            layout = tokenizer.layouts[0]
            is_cut |= layout.leaves_out(self._pool_over[role])
            spans_N2[rows] = layout.spans(lengths, self._pool_over[role])
            texts_N2[rows] = layout.spans(lengths, "text")
            flat = column.flatten().to_numpy().astype(np.int64)
            for row, part in zip(rows, np.split(flat, np.cumsum(lengths)[:-1]), strict=False):
                ids[row] = part
        return Tokenized(ids, spans_N2 if is_cut else None, texts_N2)

    def layout(self, role: Role) -> Layout:
        """How many tokens stand around a text of a role."""
        return self._tokenizers[role].layouts[0]

    def continuations(self, queries: Sequence[str], documents: Sequence[str]) -> Tokenized:
        """Each document after its query, as one text of which the document is to be said (GRIT's instructions)."""
        query, document = self(queries, ["query"] * len(queries)), self(documents, ["document"] * len(documents))
        last, first = self.layout("query").last, self.layout("document").first
        ids, spans = [], []
        for asked, said in zip(query.ids, document.ids, strict=True):
            before = asked[: len(asked) - last]
            ids.append(np.concatenate([before, said[first:]])[: self._max_tokens])
            spans.append([min(len(before), len(ids[-1])), len(ids[-1])])
        return Tokenized(ids, None, np.array(spans, np.int64).reshape(-1, 2))

    def empty(self, role: Role) -> NDArray[np.int64]:
        """The token ids of a role's template without a text in it."""
        row = self._tokenizers[role](pa.array([""], pa.string())).input_ids
        return np.asarray(row.flatten().to_numpy(), np.int64)

    def token_id(self, token: str) -> int:
        """The id of a token. Raises InputError for one that the vocabulary lacks."""
        return next(iter(self._tokenizers.values())).token_id(token)


def _pool_over(spec: EmbedderSpec) -> PoolOver:
    return spec.recipe.pool_over if spec.recipe.sparse is None else spec.recipe.sparse.pool_over


class Encoder(torch.nn.Module):
    """Micro-batches of token ids to vectors of length 1 (where the recipe says so), in float32, with gradients.

    Of a sparse recipe (SPLADE), and where `language` is asked for, the whole language model is loaded, and its head is
    trained with the trunk; adapters (LoRA) leave it as it is.
    """

    def __init__(self, spec: EmbedderSpec, tuning: Tuning, device: torch.device, language: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.width = spec.dim or spec.sparse_dim
        self.device = device
        assert tuning.precision != "auto", "settled by the run, the same for all workers"
        self._precision = tuning.precision
        recipe = spec.recipe
        if recipe.kind == "static" or recipe.prepend is not None:
            raise InputError(f"{spec.model} cannot be trained: it is static, or reads token states while it runs")
        if recipe.sparse is not None and (spec.dim or recipe.sparse.head not in ("mlm", "lm")):
            raise InputError(f"{spec.model} cannot be trained: of sparse recipes SPLADE's can, without dense vectors")
        self.is_sharded = tuning.sharding == "fsdp2"
        is_quantized = tuning.lora is not None and tuning.lora.quantized is not None
        whole = language or recipe.sparse is not None
        if whole and (self.is_sharded or is_quantized):
            raise InputError("take tuning.sharding and lora.quantized out: a head over the vocabulary has neither")
        if self.is_sharded:
            mesh = rank_mesh(device)
            with one_rank_at_a_time(device):
                self._load(tuning, torch.device("cpu"), whole)  # of which a device may hold no more than a part
                shard(self.trunk, mesh, self._precision)
        else:
            self._load(tuning, torch.device("cpu") if is_quantized else device, whole)
        self.to(device)
        self.train()

    def _load(self, tuning: Tuning, device: torch.device, with_head: bool) -> None:
        """The trunk on a device, what comes after it, and the forward pass through both."""
        recipe = self.spec.recipe
        tokenizer = Tokenizer(self.spec)
        dtype = loading_dtype(tuning)
        whole = load_language_model(self.spec, dtype) if with_head else None
        model = load_trunk(self.spec, tokenizer, dtype, merge_adapters=True) if whole is None else whole[0].base_model
        check_shapes(model, self.spec, tokenizer)
        root = checkpoint.locate_root(recipe.checkpoint, recipe.revision)
        self.head = load_head(root, recipe.head, model)
        model.to(device)
        causal = selftest.check_attention(model, recipe, tokenizer, device)
        self.token_head: torch.nn.Module | None = None
        if (part := recipe.latent_attention) is not None:
            folder = checkpoint.locate(recipe.checkpoint, recipe.revision)
            self.token_head = load_latent_attention(folder, part.prefix, part.heads, model.config.hidden_size)
        pooling = "mean" if recipe.latent_attention is not None else recipe.pooling
        pooled_id = tokenizer.token_id(recipe.pooled_token) if recipe.pooled_token is not None else None
        self.trunk = tuned(model, tuning, self.device)
        self.language_head: LanguageHead | None
        self.language_model: transformers.PreTrainedModel | None
        self.language_model, self.language_head = whole or (None, None)
        if self.language_head is not None:
            self.language_head.requires_grad_(tuning.lora is None)
        self.is_causal, self.generates = causal, False
        self._probe_1L = selftest.probe_ids(tokenizer)
        self._padded = PaddedTrunk(self.trunk, self.device, causal, recipe.padding, recipe.layers)
        self._forward: Callable[[Batch], torch.Tensor]
        if recipe.sparse is None:
            self._forward = PaddedForward(self._padded, pooling, pooled_id, self.token_head)
        else:
            assert self.language_head is not None, "loaded for sparse recipes"
            self._forward = SpladeForward(self._padded, self.language_head)
        for extra in (self.head, self.token_head):
            if extra is not None:
                extra.to(torch.float32).requires_grad_(True)

    def forward(self, batch: Batch) -> torch.Tensor:
        """vectors_BD of a micro-batch, rows in its order."""
        return self.finished(self.pooled(batch))

    def pooled(self, batch: Batch) -> torch.Tensor:
        """pooled_BD of a micro-batch, before head and normalisation."""
        with self.autocast():
            return self._forward(batch).to(torch.float32)

    def template_states(self, ids_L: torch.Tensor, positions_SL: torch.Tensor) -> torch.Tensor:
        """pooled_SD of one row of tokens at other and other positions (operators.training.steps.denoising_passes)."""
        ids_SL = ids_L.expand(len(positions_SL), -1)
        everywhere_SL = torch.ones_like(ids_SL, dtype=torch.bool)
        with self.autocast():
            inputs = {"input_ids": ids_SL, "position_ids": positions_SL}
            states_SLD = hidden_states(self.trunk, self.spec.recipe.layers, **inputs)
            tokens = TokenStates(states_SLD, ids_SL, everywhere_SL)
            one = Batch(ids_L.cpu().numpy(), np.array([len(ids_L)]))
            assert isinstance(self._forward, PaddedForward), "a dense recipe"
            return self._forward.pooled(one, tokens).to(torch.float32)

    def finished(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        """vectors_BD of pooled states."""
        if self.head is not None:
            pooled_BD = self.head(pooled_BD)
        vectors_BD = pooled_BD[:, : self.width]
        if self.spec.recipe.normalize and self.spec.dim:
            return torch.nn.functional.normalize(vectors_BD, dim=1)
        return vectors_BD

    def casts_shared(self) -> AbstractContextManager[object]:
        """While it is open, autocast makes one bfloat16 copy of each trained weight for all passes with gradients.

        It drops its copies when the outermost autocast is left, so that each pass otherwise makes and keeps its own.
        Weights are not to be changed meanwhile.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=False)

    def autocast(self) -> torch.autocast:
        """The precision in which the model computes."""
        half = self._precision == "bfloat16"
        # a copy made without gradients is of no use to a pass that wants them
        return torch.autocast(self.device.type, torch.bfloat16, half, cache_enabled=torch.is_grad_enabled())

    def language_trunk(self, causal: bool) -> PaddedTrunk:
        """The trunk that a language model's head reads: causal, or with the recipe's bidirectional attention.

        Raises InputError where the model's attention is not that.
        """
        assert self.language_model is not None, "loaded where the run has a loss of language modelling"
        if not causal:
            if self.is_causal:
                raise InputError(f"set attention: bidirectional in the recipe of {self.spec.model}, as mntp needs it")
            return self._padded
        view = causal_view(self.language_model.base_model)
        self.eval()
        sees_later, _ = selftest.tokens_that_see(view, self._probe_1L.to(self.device))
        self.train()
        if sees_later:
            raise InputError(f"take causal_lm out: tokens of {self.spec.model} see later ones whatever its config says")
        self.generates = True
        return PaddedTrunk(view, self.device, causal=True, side=self.spec.recipe.padding)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def merged_trunk(self) -> transformers.PreTrainedModel:
        """The trunk on the CPU, its adapters merged into its weights; the encoder is not to be trained any further.

        Of a sharded encoder no rank has one: another, not sharded, is to be given its weights.
        """
        return merged(self.trunk)
