"""The trainable form of an embedder: the same templates, tokens, pooling and head as `Embedder`, with gradients.

Shapes: N texts, B and L rows and padded length of a micro-batch, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
import transformers
from numpy.typing import NDArray

from operators.embedder import checkpoint, selftest
from operators.embedder.batching import Batch
from operators.embedder.engine import check_shapes, load_trunk
from operators.embedder.forward import PaddedForward, PaddedTrunk
from operators.embedder.heads import load_head
from operators.embedder.latent import load_latent_attention
from operators.embedder.spec import EmbedderSpec
from operators.embedder.tokenizing import Tokenizer
from operators.errors import InputError
from operators.training.sharding import one_rank_at_a_time, rank_mesh, shard
from operators.training.tuned import loading_dtype, merged, tuned
from operators.training.tuning import Tuning

Role = Literal["query", "document"]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Texts as the model reads them, each in the template of its role."""

    ids: Sequence[NDArray[np.int64]]
    spans_N2: NDArray[np.int64] | None  # tokens that are pooled; None: all

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
        self._pool_over = {role: spec.recipe.pool_over for role, spec in specs.items()}

    def __call__(self, texts: Sequence[str], roles: Sequence[Role]) -> Tokenized:
        """Token ids and pooled spans of N texts."""
        ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(texts)
        spans_N2 = np.zeros((len(texts), 2), np.int64)
        is_cut = False
        for role, tokenizer in self._tokenizers.items():
            rows = [row for row, own in enumerate(roles) if own == role]
            column = tokenizer(pa.array([texts[row] for row in rows], pa.string())).input_ids
            lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
            layout = tokenizer.layouts[0]
            is_cut |= layout.leaves_out(self._pool_over[role])
            spans_N2[rows] = layout.spans(lengths, self._pool_over[role])
            flat = column.flatten().to_numpy().astype(np.int64)
            for row, part in zip(rows, np.split(flat, np.cumsum(lengths)[:-1]), strict=False):
                ids[row] = part
        return Tokenized(ids, spans_N2 if is_cut else None)


class Encoder(torch.nn.Module):
    """Micro-batches of token ids to vectors of length 1 (where the recipe says so), in float32, with gradients."""

    def __init__(self, spec: EmbedderSpec, tuning: Tuning, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.device = device
        self._precision = tuning.precision
        recipe = spec.recipe
        if recipe.kind == "static" or recipe.prepend is not None:
            raise InputError(f"{spec.model} cannot be trained: it is static, or reads token states while it runs")
        self.is_sharded = tuning.sharding == "fsdp2"
        if self.is_sharded:
            mesh = rank_mesh(device)
            with one_rank_at_a_time(device):
                self._load(tuning, torch.device("cpu"))  # of which a device may hold no more than a part
                shard(self.trunk, mesh, tuning.precision)
        else:
            is_quantized = tuning.lora is not None and tuning.lora.quantized is not None
            self._load(tuning, torch.device("cpu") if is_quantized else device)
        self.to(device)
        self.train()

    def _load(self, tuning: Tuning, device: torch.device) -> None:
        """The trunk on a device, what comes after it, and the forward pass through both."""
        recipe = self.spec.recipe
        tokenizer = Tokenizer(self.spec)
        model = load_trunk(self.spec, tokenizer, loading_dtype(tuning), merge_adapters=True)
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
        padded = PaddedTrunk(self.trunk, self.device, causal, recipe.padding, recipe.layers)
        self._forward = PaddedForward(padded, pooling, pooled_id, self.token_head)
        for extra in (self.head, self.token_head):
            if extra is not None:
                extra.to(torch.float32).requires_grad_(True)

    def forward(self, batch: Batch) -> torch.Tensor:
        """vectors_BD of a micro-batch, rows in its order."""
        half = self._precision == "bfloat16"
        # a copy made without gradients is of no use to a pass that wants them
        with torch.autocast(self.device.type, torch.bfloat16, half, cache_enabled=torch.is_grad_enabled()):
            pooled_BD = self._forward(batch)
        pooled_BD = pooled_BD.to(torch.float32)
        if self.head is not None:
            pooled_BD = self.head(pooled_BD)
        vectors_BD = pooled_BD[:, : self.spec.dim]
        if self.spec.recipe.normalize:
            return torch.nn.functional.normalize(vectors_BD, dim=1)
        return vectors_BD

    def casts_shared(self) -> AbstractContextManager[object]:
        """While it is open, autocast makes one bfloat16 copy of each trained weight for all passes with gradients.

        It drops its copies when the outermost autocast is left, so that each pass otherwise makes and keeps its own.
        Weights are not to be changed meanwhile.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=False)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def merged_trunk(self) -> transformers.PreTrainedModel:
        """The trunk on the CPU, its adapters merged into its weights; the encoder is not to be trained any further.

        Of a sharded encoder no rank has one: another, not sharded, is to be given its weights.
        """
        return merged(self.trunk)
