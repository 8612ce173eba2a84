"""From token states to one vector per text, and the seam behind which a model's forward pass sits.

Shapes: B rows, L padded length, D width of a state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
import transformers

from operators.embedder.batching import Batch

if TYPE_CHECKING:
    from operators.embedder.recipe import Pooling


# Padded tokens of a batch: small ones stay in a CPU's cache (measured: benchmarks/RESULTS.md), a GPU wants many.
CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 2048, 16384


class PooledForward(Protocol):
    """Tokens of a batch -> pooled_BD float32 on the model's device, rows in the batch's order.

    Neither cut to fewer dimensions nor normalised; that is the engine's part, as are rows that are not finite.
    """

    batch_tokens: int
    """Padded tokens per batch that measured best, for where the config sets none."""
    pads: bool
    """Whether it computes all B x L tokens; False where it computes the texts' own alone."""

    def __call__(self, batch: Batch) -> torch.Tensor: ...


def pool(states_BLD: torch.Tensor, mask_BL: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """pooled_BD in float32; padding may be on either side, and each row has a token."""
    if pooling == "mean":
        # in float32, since bfloat16 sums lose whole tokens after 256 of them; filled, since 0 * inf of padding is NaN
        states_BLD = states_BLD.to(torch.float32).masked_fill(~mask_BL[:, :, None], 0.0)
        return states_BLD.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True)
    if pooling == "cls":
        token_B = mask_BL.to(torch.int32).argmax(dim=1)  # argmax is the first of equals
    else:
        token_B = mask_BL.shape[1] - 1 - mask_BL.flip(1).to(torch.int32).argmax(dim=1)
    return states_BLD[torch.arange(len(token_B), device=token_B.device), token_B].to(torch.float32)


class PaddedForward:
    """Any transformers model, over right-padded batches."""

    pads = True

    def __init__(
        self, model: transformers.PreTrainedModel, pooling: Pooling, device: torch.device, causal: bool
    ) -> None:
        self._model = model
        self._pooling = pooling
        self._device = device
        self._causal = causal  # padding on the right is then never looked at, and the fast kernels take no mask
        pad_id = getattr(model.config, "pad_token_id", None)
        self._pad_id = pad_id if isinstance(pad_id, int) and pad_id >= 0 else 0
        # CPU: 2-4k tokens stay in cache (11.5k, 15k, 14k, 12k tokens/s at 1k, 2k, 4k, 8k on two AVX-512 cores).
        self.batch_tokens = CUDA_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS

    def __call__(self, batch: Batch) -> torch.Tensor:
        ids_BL = self._to_device(torch.from_numpy(batch.pad(self._pad_id)))
        mask_BL = self._to_device(torch.from_numpy(batch.mask()))
        no_mask = self._causal or batch.lengths_B[0] == batch.lengths_B[-1]
        output = self._model(input_ids=ids_BL, attention_mask=None if no_mask else mask_BL)
        return pool(output.last_hidden_state, mask_BL, self._pooling)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return tensor
        # from pinned memory the copy runs beside the previous batch's kernels; torch keeps the buffer until it is done
        return tensor.pin_memory().to(self._device, non_blocking=True)
