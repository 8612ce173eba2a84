"""Sparse heads: the token states of a batch -> the entries of its rows' sparse vectors, on the model's device.

SPLADE: Formal et al., SIGIR 2021 (arXiv 2107.05720; the maximum over tokens since arXiv 2109.10086). BGE-M3: arXiv
2402.03216. PromptReps: arXiv 2404.18424. Nothing of B x V outlives its rows: only entries are kept.

Shapes: B rows, L padded length, D width of a state, V size of the vocabulary, K candidates of a row, S entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError

from operators.embedder.model.forward import TokenStates
from operators.embedder.model.pooling import pool
from operators.embedder.recipe.sparse_head import SparseHead, token_weights_file
from operators.embedder.sparse.vocabulary import VocabularyHead
from operators.embedder.sparse.words import WordsInText
from operators.embedder.sparse_vectors import SparseVectors
from operators.embedder.tokens.batching import Batch
from operators.errors import InputError

WEIGHTS_AT_ONCE = 1 << 26  # rows times vocabulary: 256 MB
WITHOUT_WORDS = 10  # entries of a text that has stop words alone (PromptReps)


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of some rows, one row after another."""

    counts_B: torch.Tensor
    indices_S: torch.Tensor  # ascending in each row
    weights_S: torch.Tensor  # above 0
    finite_B: torch.Tensor


class Head(Protocol):
    """Token states of a batch, and which of its tokens count -> entries, in parts that together are all rows."""

    def __call__(self, batch: Batch, tokens: TokenStates, over_BL: torch.Tensor) -> Iterator[Entries]: ...


class SpladeHead:
    """log(1 + relu(logit)), the largest over the tokens."""

    def __init__(self, vocabulary: VocabularyHead, settings: SparseHead) -> None:
        self._vocabulary, self._settings = vocabulary, settings

    def __call__(self, batch: Batch, tokens: TokenStates, over_BL: torch.Tensor) -> Iterator[Entries]:
        """See `Head`."""
        for rows in _row_groups(len(over_BL), self._vocabulary.size):
            # the maximum first: it changes nothing, since log(1 + relu) never falls, and saves L times the logarithms
            weights_BV = torch.log1p(F.relu(self._vocabulary.largest(tokens.states_BLD[rows], over_BL[rows])))
            ids_V = torch.arange(self._vocabulary.size, device=weights_BV.device)
            yield entries(weights_BV, ids_V.expand_as(weights_BV), self._settings)


class NextWordHead:
    """log(1 + relu(logit)) of the word that would come next, for the words of the text."""

    def __init__(self, vocabulary: VocabularyHead, settings: SparseHead, words: WordsInText) -> None:
        self._vocabulary, self._settings, self._words = vocabulary, settings, words

    def __call__(self, batch: Batch, tokens: TokenStates, over_BL: torch.Tensor) -> Iterator[Entries]:
        """See `Head`."""
        words = self._words(batch)
        last_BD = pool(tokens.states_BLD, tokens.mask_BL, "last").to(tokens.states_BLD.dtype)
        for rows in _row_groups(len(words), self._vocabulary.size):
            states_B1D = last_BD[rows, None]
            every_B1 = torch.ones(states_B1D.shape[:2], dtype=torch.bool, device=states_B1D.device)
            weights_BV = torch.log1p(F.relu(self._vocabulary.largest(states_B1D, every_B1)))
            ids_BK, known_BK = self._candidates(words[rows], weights_BV)
            weights_BK = weights_BV.gather(1, ids_BK).masked_fill(~known_BK, 0.0)
            finite_B = torch.isfinite(weights_BV).all(dim=1, keepdim=True)
            yield entries(weights_BK.masked_fill(~finite_B, torch.nan), ids_BK, self._settings)

    def _candidates(
        self, words: Sequence[NDArray[np.int64]], weights_BV: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ids_BK and which of them count; a text without words takes the heaviest of all."""
        heaviest = torch.topk(weights_BV, min(WITHOUT_WORDS, self._vocabulary.size), dim=1).indices.cpu().numpy()
        own = [ids if len(ids) else np.sort(heaviest[row]) for row, ids in enumerate(words)]
        ids_BK = np.zeros((len(own), max(map(len, own))), np.int64)
        known_BK = np.arange(ids_BK.shape[1]) < np.array([len(ids) for ids in own])[:, None]
        ids_BK[known_BK] = np.concatenate(own)
        device = weights_BV.device
        return torch.from_numpy(ids_BK).to(device), torch.from_numpy(known_BK).to(device)


class TokenWeightsHead:
    """relu(w . state + b) of each token, the largest where an id comes twice; special tokens have none."""

    def __init__(self, root: Path, width: int, size: int, special_ids: Sequence[int], settings: SparseHead) -> None:
        file = token_weights_file(root)
        self._linear = torch.nn.Linear(width, 1)
        try:
            self._linear.load_state_dict(safetensors.torch.load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(
                f"{file} does not fit: a weight [1, {width}] and a bias [1] are wanted: {error}"
            ) from error
        self._linear.requires_grad_(False)
        self._size, self._settings = size, settings
        self._special = torch.tensor(sorted(special_ids))

    def to(self, device: torch.device) -> TokenWeightsHead:
        """The head on a device; it computes in float32."""
        self._linear.to(device)
        self._special = self._special.to(device)
        return self

    def __call__(self, batch: Batch, tokens: TokenStates, over_BL: torch.Tensor) -> Iterator[Entries]:
        """See `Head`."""
        weights_BL = F.relu(self._linear(tokens.states_BLD.to(torch.float32)))[:, :, 0]
        counted_BL = over_BL & ~torch.isin(tokens.ids_BL, self._special)
        # sorted by id, so that equal ids stand side by side; those that do not count come last
        ids_BL, order_BL = torch.where(counted_BL, tokens.ids_BL, self._size).sort(dim=1, stable=True)
        weights_BL = torch.where(counted_BL, weights_BL, 0.0).gather(1, order_BL)
        starts_BL = torch.diff(ids_BL, dim=1, prepend=torch.full_like(ids_BL[:, :1], -1)) != 0
        places_BL = starts_BL.cumsum(dim=1) - 1  # which different id of its row a token has
        largest_BL = torch.zeros_like(weights_BL).scatter_reduce(1, places_BL, weights_BL, "amax", include_self=True)
        own_BL = torch.zeros_like(ids_BL).scatter(1, places_BL, ids_BL)
        finite_B1 = torch.isfinite(weights_BL).all(dim=1, keepdim=True)
        yield entries(largest_BL.masked_fill(~finite_B1, torch.nan), own_BL, self._settings)


def entries(weights_BK: torch.Tensor, ids_BK: torch.Tensor, settings: SparseHead) -> Entries:
    """The entries above 0 of candidate weights; a row with NaN or infinity among them has none and is not finite."""
    finite_B = torch.isfinite(weights_BK).all(dim=1)
    weights_BK = weights_BK.masked_fill(~finite_B[:, None], 0.0)
    if settings.top is not None and settings.top < weights_BK.shape[1]:
        weights_BK, places_BK = weights_BK.topk(settings.top, dim=1)
        ids_BK, order_BK = ids_BK.gather(1, places_BK).sort(dim=1)
        weights_BK = weights_BK.gather(1, order_BK)
    if settings.integer_scale is not None:
        weights_BK = torch.round(weights_BK * settings.integer_scale)
    kept_BK = weights_BK > 0
    return Entries(kept_BK.sum(dim=1), ids_BK[kept_BK].to(torch.int32), weights_BK[kept_BK], finite_B)


def gathered(parts: Sequence[Entries]) -> tuple[SparseVectors, NDArray[np.bool_]]:
    """The vectors of all parts, fetched from the device, and which of them are finite."""

    def joined(name: str) -> NDArray[np.generic]:
        return np.asarray(torch.cat([getattr(part, name) for part in parts]).cpu().numpy())

    if not parts:
        return SparseVectors.empty(0), np.zeros(0, np.bool_)
    vectors = SparseVectors(
        joined("counts_B").astype(np.int64),
        joined("indices_S").astype(np.int32),
        joined("weights_S").astype(np.float32),
    )
    return vectors, joined("finite_B").astype(np.bool_)


def _row_groups(rows: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, WEIGHTS_AT_ONCE // vocabulary)
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))
