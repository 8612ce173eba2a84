"""The forward pass of any transformers model over a batch, in two parts: token states, then a vector per row.

Whatever is made of token states (one vector, one per chunk of a document, a weight per word of the vocabulary) begins
with a `Trunk`: `PaddedTrunk` here, or operators.embedder.model.packing's. `PooledForward` is the seam behind which the
engine takes whichever forward is fastest.

Shapes: B rows, L padded length, D width of a state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from operators.embedder.model.pooling import pool, pool_chunks
from operators.embedder.model.token_prepending import TokenPrepending
from operators.embedder.recipe.keywords import Pooling, Side
from operators.embedder.tokens.batching import CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS, Batch

if TYPE_CHECKING:
    import transformers


def default_batch_tokens(device: torch.device) -> int:
    """The padded tokens of a batch that measured best on a device."""
    return CUDA_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS


class PooledForward(Protocol):
    """Tokens of a batch -> pooled_BD float32 on the model's device, rows in the batch's order; of a batch with late
    chunks, one row for each of them (pooling `mean`).

    Before the recipe's head, not cut to fewer dimensions, not normalised; that is the engine's part, as are rows that
    are not finite.
    """

    batch_tokens: int
    """Padded tokens per batch that measured best, for where the config sets none."""
    pads: bool
    """Whether it computes all B x L tokens; False where it computes the texts' own alone."""

    def __call__(self, batch: Batch) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class TokenStates:
    """What a model makes of a batch."""

    states_BLD: torch.Tensor
    ids_BL: torch.Tensor
    mask_BL: torch.Tensor  # where there is a token; padding may be on either side


class Trunk(Protocol):
    """A transformers model: tokens of a batch -> their states, as rows padded on `side`."""

    side: Side
    batch_tokens: int
    pads: bool

    def __call__(self, batch: Batch) -> TokenStates: ...

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the CPU where the model is."""


class PaddedTrunk:
    """Any transformers model: the mean of the hidden states of `layers`, of which -1 is the last, after its norm."""

    pads = True

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        device: torch.device,
        causal: bool,
        side: Side = "right",
        layers: tuple[int, ...] = (-1,),
        prepending: TokenPrepending | None = None,
    ) -> None:
        self.model = model
        self.device = device
        # padding on the right is then never looked at, and the fast kernels take no mask
        self._needs_no_mask = causal and side == "right"
        self.side = side
        # models that learnt a vector for each position (BERT) count padding on the left as if it were text
        self._gives_positions = side == "left" and "position_ids" in inspect.signature(model.forward).parameters
        self.layers = layers
        self._prepending = prepending
        self._pad_id = pad_id_of(model)
        # CPU: 2-4k tokens stay in cache (11.5k, 15k, 14k, 12k tokens/s at 1k, 2k, 4k, 8k on two AVX-512 cores).
        self.batch_tokens = default_batch_tokens(device)

    def __call__(self, batch: Batch) -> TokenStates:
        ids_BL = self.to_device(torch.from_numpy(batch.pad(self._pad_id, self.side)))
        mask_BL = self.to_device(torch.from_numpy(batch.mask(self.side)))
        no_mask = self._needs_no_mask or batch.lengths_B[0] == batch.lengths_B[-1]
        inputs = {"input_ids": ids_BL, "attention_mask": None if no_mask else mask_BL}
        if self._gives_positions:
            positions_BL = batch.padded_positions(skipped_id(self.model), self.side)
            inputs["position_ids"] = self.to_device(torch.from_numpy(positions_BL))
        with nullcontext() if self._prepending is None else self._prepending.on_batch(ids_BL, mask_BL):
            states_BLD = hidden_states(self.model, self.layers, **inputs)
        return TokenStates(states_BLD, ids_BL, mask_BL)

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the CPU where the model is."""
        return to_device(tensor, self.device)


def hidden_states(model: transformers.PreTrainedModel, layers: tuple[int, ...], **inputs: Any) -> torch.Tensor:
    """states_BLD: the mean of the hidden states of `layers`."""
    if layers == (-1,):
        last_BLD: torch.Tensor = model(**inputs).last_hidden_state
        return last_BLD
    output = model(**inputs, output_hidden_states=True)
    chosen = [output.hidden_states[layer] for layer in layers]
    return chosen[0] if len(chosen) == 1 else torch.stack(chosen).to(torch.float32).mean(dim=0)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device."""
    if device.type != "cuda":
        return tensor
    # from pinned memory the copy runs beside the previous batch's kernels; torch keeps the buffer until it is done
    return tensor.pin_memory().to(device, non_blocking=True)


def pad_id_of(model: transformers.PreTrainedModel) -> int:
    """The id that rows are padded with; any will do, since padding is masked."""
    pad_id = getattr(model.config, "pad_token_id", None)
    return pad_id if isinstance(pad_id, int) and pad_id >= 0 else 0


def skipped_id(model: transformers.PreTrainedModel) -> int | None:
    """The padding id of a model that counts positions as RoBERTa does (`Batch.positions`); None of any other."""
    skipped = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    return skipped if isinstance(skipped, int) else None


class PaddedForward:
    """A `PooledForward` of a trunk: its states, changed by `token_head` where there is one, then pooled."""

    def __init__(
        self,
        trunk: Trunk,
        pooling: Pooling,
        pooled_id: int | None = None,
        token_head: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._trunk = trunk
        self._pooling = pooling
        self._pooled_id = pooled_id  # of pooling `token`
        self._token_head = token_head
        self.batch_tokens = trunk.batch_tokens
        self.pads = trunk.pads

    def __call__(self, batch: Batch) -> torch.Tensor:
        return self.pooled(batch, self._trunk(batch))

    def pooled(self, batch: Batch, tokens: TokenStates) -> torch.Tensor:
        """pooled_BD of states that the trunk has made of the batch."""
        states_BLD = tokens.states_BLD if self._token_head is None else self._token_head(tokens.states_BLD)
        if batch.chunks_S3 is not None:
            places_P, begins_S = (torch.from_numpy(places) for places in batch.chunk_places(self._trunk.side))
            to_device = self._trunk.to_device
            return pool_chunks(states_BLD.flatten(0, 1), to_device(places_P), to_device(begins_S))
        pooled_BL = None
        if batch.spans_B2 is not None:
            pooled_BL = self._trunk.to_device(torch.from_numpy(batch.pooled(self._trunk.side)))
        if self._pooled_id is not None:
            pooled_BL = (tokens.mask_BL if pooled_BL is None else pooled_BL) & (tokens.ids_BL == self._pooled_id)
        return pool(states_BLD, tokens.mask_BL, self._pooling, pooled_BL)
