"""The forward pass of any transformers model over padded batches, in two parts: token states, then a vector per row.

Whatever is made of token states (one vector, one per chunk of a document, a weight per word of the vocabulary) begins
with `PaddedTrunk`; `PooledForward` is the seam behind which the engine takes whichever forward is fastest.

Shapes: B rows, L padded length, D width of a state.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import transformers

from operators.embedder.batching import Batch, Side
from operators.embedder.pooling import pool, pool_chunks
from operators.embedder.prepending import TokenPrepending

if TYPE_CHECKING:
    from operators.embedder.recipe import Pooling

# Padded tokens of a batch: small ones stay in a CPU's cache (measured: benchmarks/RESULTS.md), a GPU wants many.
CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 2048, 16384


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


class PaddedTrunk:
    """Any transformers model: the mean of the hidden states of `layers`, of which -1 is the last, after its norm."""

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        device: torch.device,
        causal: bool,
        side: Side = "right",
        layers: tuple[int, ...] = (-1,),
        prepending: TokenPrepending | None = None,
    ) -> None:
        self._model = model
        self._device = device
        # padding on the right is then never looked at, and the fast kernels take no mask
        self._needs_no_mask = causal and side == "right"
        self.side = side
        self._layers = layers
        self._prepending = prepending
        pad_id = getattr(model.config, "pad_token_id", None)
        self._pad_id = pad_id if isinstance(pad_id, int) and pad_id >= 0 else 0
        # CPU: 2-4k tokens stay in cache (11.5k, 15k, 14k, 12k tokens/s at 1k, 2k, 4k, 8k on two AVX-512 cores).
        self.batch_tokens = default_batch_tokens(device)

    def __call__(self, batch: Batch) -> TokenStates:
        ids_BL = self.to_device(torch.from_numpy(batch.pad(self._pad_id, self.side)))
        mask_BL = self.to_device(torch.from_numpy(batch.mask(self.side)))
        no_mask = self._needs_no_mask or batch.lengths_B[0] == batch.lengths_B[-1]
        attention_mask = None if no_mask else mask_BL
        with nullcontext() if self._prepending is None else self._prepending.on_batch(ids_BL, mask_BL):
            states_BLD = self._states(ids_BL, attention_mask)
        return TokenStates(states_BLD, ids_BL, mask_BL)

    def _states(self, ids_BL: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        if self._layers == (-1,):
            last_BLD: torch.Tensor = self._model(input_ids=ids_BL, attention_mask=attention_mask).last_hidden_state
            return last_BLD
        output = self._model(input_ids=ids_BL, attention_mask=attention_mask, output_hidden_states=True)
        chosen = [output.hidden_states[layer] for layer in self._layers]
        return chosen[0] if len(chosen) == 1 else torch.stack(chosen).to(torch.float32).mean(dim=0)

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the CPU where the model is."""
        if self._device.type != "cuda":
            return tensor
        # from pinned memory the copy runs beside the previous batch's kernels; torch keeps the buffer until it is done
        return tensor.pin_memory().to(self._device, non_blocking=True)


class PaddedForward:
    """A `PooledForward` of a trunk: its states, changed by `token_head` where there is one, then pooled."""

    pads = True

    def __init__(
        self,
        trunk: PaddedTrunk,
        pooling: Pooling,
        pooled_id: int | None = None,
        token_head: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._trunk = trunk
        self._pooling = pooling
        self._pooled_id = pooled_id  # of pooling `token`
        self._token_head = token_head
        self.batch_tokens = trunk.batch_tokens

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
