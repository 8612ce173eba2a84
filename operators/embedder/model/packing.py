"""Texts one after another through a transformers model, without padding: every token computed is one of a text.

Only attention needs to know where a text ends, and transformers leaves attention, and the masks for it, to functions
that are registered under a name:

    mask function   the model says which tokens each of its layers sees     -> `Band`: how many before and after
    attention       texts of equal length side by side, each for itself     -> torch's own kernel, without padding

So no text can see another, whatever the model; causal and bidirectional models and sliding windows are as the model has
them; and where no window binds, the kernel gets no mask, which is when a GPU's fast ones are used. Sorting makes
runs of equal length long. `pack` compares with the padded forward pass on the model itself before any text is embedded.

Shapes: T tokens of a batch, B texts, P places of the padded rows, N texts of a run and L their length, D width of a
state, H heads, K width of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from operators.embedder.model.forward import (
    PaddedTrunk,
    TokenStates,
    default_batch_tokens,
    hidden_states,
    pad_id_of,
    skipped_id,
    to_device,
)
from operators.embedder.recipe.keywords import Side
from operators.embedder.tokens.batching import Batch, Run
from operators.errors import InputError

IMPLEMENTATION = "embedfleet_packed"
# what transformers and torch raise where a model does not leave attention to the registered function
FORWARD_ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError)


class PackedTrunk:
    """A `Trunk` that computes the texts' own tokens alone; made by `pack`, which also checks it."""

    pads = False
    side: Side = "right"

    def __init__(self, model: transformers.PreTrainedModel, device: torch.device, layers: tuple[int, ...]) -> None:
        self._model = model
        self._device = device
        self._layers = layers
        self._pad_id = pad_id_of(model)
        self.batch_tokens = default_batch_tokens(device)

    def __call__(self, batch: Batch) -> TokenStates:
        ids_1T = torch.from_numpy(batch.ids_T)[None]
        states_1TD = hidden_states(
            self._model,
            self._layers,
            input_ids=self.to_device(ids_1T),
            # of ones, so that transformers does not look for texts in the positions, which costs a T x T mask
            attention_mask=self.to_device(torch.ones_like(ids_1T, dtype=torch.bool)),
            position_ids=self.to_device(torch.from_numpy(batch.positions(skipped_id(self._model)))[None]),
            runs=list(batch.runs()),
        )
        mask_BL = batch.mask()
        places_T = self.to_device(torch.from_numpy(np.flatnonzero(mask_BL)))
        states_PD = states_1TD.new_zeros(mask_BL.size, states_1TD.shape[-1])
        states_BLD = states_PD.index_copy(0, places_T, states_1TD[0]).view(*mask_BL.shape, -1)
        ids_BL = self.to_device(torch.from_numpy(batch.pad(self._pad_id)))
        return TokenStates(states_BLD, ids_BL, self.to_device(torch.from_numpy(mask_BL)))

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the CPU where the model is."""
        return to_device(tensor, self._device)


@dataclass(frozen=True, slots=True)
class Band:
    """What a token sees: itself, and so many tokens before and after it."""

    before: int
    after: int

    @classmethod
    def of(cls, sees: Callable[..., torch.Tensor], num_tokens: int) -> Band:
        """The band of a mask function of transformers: text, head, query's place, key's place -> whether it sees it."""
        zero, places_T = torch.tensor(0), torch.arange(num_tokens)

        def seen_by(place: int) -> torch.Tensor:
            return sees(zero, zero, places_T[place : place + 1], places_T).expand(num_tokens)

        band = cls(int(seen_by(num_tokens - 1).sum()) - 1, int(seen_by(0).sum()) - 1)
        for place in {0, num_tokens // 2, num_tokens - 1}:
            nearest_T = (places_T >= place - band.before) & (places_T <= place + band.after)
            if not torch.equal(seen_by(place), nearest_T):
                raise ValueError("its tokens see others than those nearest to them")
        return band

    def mask(self, length: int, device: torch.device) -> tuple[torch.Tensor | None, bool]:
        """For texts of a length: mask_LL, None where the kernel needs none, and whether it is to be causal."""
        if self.before >= length - 1 and (self.after == 0 or self.after >= length - 1):
            return None, self.after == 0
        seen_LL = torch.ones(length, length, dtype=torch.bool, device=device)
        return seen_LL.tril(self.after).triu(-self.before), False


@torch.inference_mode()
def pack(padded: PaddedTrunk, probe: Batch, least_cosine: float) -> PackedTrunk:
    """The packed form of a padded trunk, which cannot be used any more; `probe` holds texts to compare them with.

    Raises InputError where the two differ, or where a text's states are not the same whatever stands beside it.
    """
    model = padded.model
    name = model.config.model_type
    if model.config._attn_implementation != "sdpa":
        raise InputError(f"leave out embedder.packing: {name} has no attention of the kind that it needs (sdpa)")
    alone = [padded(one).states_BLD[0] for one in _each_alone(probe)]
    transformers.AttentionInterface.register(IMPLEMENTATION, _attend)
    transformers.AttentionMaskInterface.register(IMPLEMENTATION, _band)
    model.set_attn_implementation(IMPLEMENTATION)
    packed = PackedTrunk(model, padded.device, padded.layers)
    try:
        together = _states_of(packed(probe))
        beside_others = [_states_of(packed(_with_others(probe, kept))) for kept in (0, 1)]
    except FORWARD_ERRORS as error:
        raise InputError(f"leave out embedder.packing: {name} cannot be packed: {error}") from error
    cosine = min(map(_cosine, alone, together))
    if not cosine >= least_cosine:
        raise InputError(
            f"leave out embedder.packing: {name} gives texts packed and padded different states "
            f"(cosine {cosine:.6f}, at least {least_cosine} expected)"
        )
    # the same shapes and kernels, so the same bits
    if not all(torch.equal(together[i], beside_others[i % 2][i]) for i in range(len(together))):
        raise InputError(f"leave out embedder.packing: {name} lets packed texts see one another")
    return packed


def _band(q_length: int, mask_function: Callable[..., torch.Tensor], **_: Any) -> Band:
    """In place of a mask: transformers passes it on to the attention of the layers that the mask is for."""
    return Band.of(mask_function, q_length)


def _attend(
    module: torch.nn.Module,
    query_1HTK: torch.Tensor,
    key_1HTK: torch.Tensor,
    value_1HTK: torch.Tensor,
    attention_mask: Band | None,
    runs: Sequence[Run] | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """out_1THK: attention of every text to itself."""
    if runs is None or not isinstance(attention_mask, Band):
        raise TypeError("it does not tell its attention which texts and tokens there are")
    if position_bias is not None:
        raise TypeError("its attention has a bias for places")
    _, heads, num_tokens, _ = query_1HTK.shape
    out_THK = query_1HTK.new_empty(num_tokens, heads, value_1HTK.shape[-1])
    for run in runs:
        tokens = slice(run.first_token, run.first_token + run.num_texts * run.length)
        query, key, value = (
            states_1HTK[0, :, tokens].reshape(-1, run.num_texts, run.length, states_1HTK.shape[-1]).transpose(0, 1)
            for states_1HTK in (query_1HTK, key_1HTK, value_1HTK)
        )
        mask_LL, causal = attention_mask.mask(run.length, query.device)
        mask = None if mask_LL is None else mask_LL[None, None]
        out_NLHK, _ = sdpa_attention_forward(module, query, key, value, mask, is_causal=causal, **settings)
        out_THK[tokens] = out_NLHK.flatten(0, 1)
    return out_THK[None], None


def _each_alone(batch: Batch) -> list[Batch]:
    rows = np.split(batch.ids_T, np.cumsum(batch.lengths_B)[:-1])
    return [Batch(ids_L, np.array([len(ids_L)])) for ids_L in rows]


def _with_others(batch: Batch, kept: int) -> Batch:
    """The batch with every second text, from `kept` on, as it is, and the others' tokens backwards."""
    rows = np.split(batch.ids_T, np.cumsum(batch.lengths_B)[:-1])
    return Batch(np.concatenate([row if i % 2 == kept else row[::-1] for i, row in enumerate(rows)]), batch.lengths_B)


def _states_of(tokens: TokenStates) -> list[torch.Tensor]:
    return [states_LD[mask_L] for states_LD, mask_L in zip(tokens.states_BLD, tokens.mask_BL, strict=True)]


def _cosine(one_LD: torch.Tensor, other_LD: torch.Tensor) -> float:
    return F.cosine_similarity(one_LD.flatten().double(), other_LD.flatten().double(), dim=0).item()
