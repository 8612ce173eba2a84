"""Language modelling in a training step: tokens of a rank's texts in, gradients of its share of the loss out.

Micro-batch after micro-batch, whose activations live one at a time. What is masked follows from the seed, the step and
a text's place in the global batch, and the loss is over the targets of all ranks: neither their number nor that of the
micro-batches changes it.

Shapes: N texts of a rank, n tokens of a text, B and L rows and padded length of a micro-batch, T its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from operators.embedder.tokens.batching import Batch
from operators.training.config.language import CausalLm, LanguageLoss, Mntp
from operators.training.data.mixing import key_of
from operators.training.model.encoder import Encoder, Tokenized
from operators.training.objectives.gathering import sum_over_ranks
from operators.training.objectives.language import IGNORED, Targets, next_token
from operators.training.objectives.masking import mask_tokens
from operators.training.steps.micro_batches import micro_batches
from operators.training.steps.rank_batches import RankBatch

_EVALUATED = -1  # in place of a step: what is masked of texts that are held back


@dataclass(frozen=True, slots=True)
class Exercise:
    """What a text asks of the model."""

    inputs_n: NDArray[np.int64]
    labels_n: NDArray[np.int64]  # IGNORED where there is nothing to predict

    @property
    def num_targets(self) -> int:
        """Tokens to predict."""
        return int((self.labels_n[1:] != IGNORED).sum())


class LanguagePasses:
    """The passes of sets with a loss of language modelling; see operators.training.steps.passes.Passes."""

    def __init__(self, encoder: Encoder, config: LanguageLoss, mask_id: int | None, seed: int) -> None:
        assert encoder.language_head is not None, "loaded for such losses"
        self._encoder, self._head, self._config = encoder, encoder.language_head, config
        self._trunk = encoder.language_trunk(causal=isinstance(config, CausalLm))
        self._mask_id, self._seed = mask_id, seed
        self.own_parameters: dict[str, torch.nn.Parameter] = {}

    def __call__(self, batch: RankBatch, scale: float = 1.0) -> torch.Tensor:
        """Add the gradients of `scale` times the share of this rank, and return the share."""
        step, ranks = batch.planned.step, batch.facts.rows
        exercises = list(self._exercises(batch.tokenized, step, ranks.own.start))
        whole = self._targets(exercises)
        total = torch.zeros((), device=self._encoder.device)
        for number, rows in enumerate(batch.micro_batches.rows):
            torch.manual_seed(key_of("language dropout", self._seed, step, ranks.rank, number) >> 1)
            share = self._share([exercises[row] for row in rows], whole)
            torch.autograd.backward(share * scale)
            total += share.detach()
        return total

    @torch.no_grad()
    def mean_loss(self, tokenized: Tokenized, first_row: int, pass_tokens: int) -> float:
        """The loss of texts, of which each rank has some, from `first_row` of all on; the same on every rank."""
        exercises = list(self._exercises(tokenized, _EVALUATED, first_row))
        whole = self._targets(exercises)
        total = torch.zeros((), device=self._encoder.device)
        self._encoder.eval()
        if exercises:
            lengths_N = np.array([len(one.inputs_n) for one in exercises], np.int64)
            for rows in micro_batches(lengths_N, pass_tokens).rows:
                total += self._share([exercises[row] for row in rows], whole)
        self._encoder.train()
        return float(sum_over_ranks(total))

    def _exercises(self, tokenized: Tokenized, step: int, first_row: int) -> Iterator[Exercise]:
        for row, (ids_n, (start, end)) in enumerate(zip(tokenized.ids, tokenized.texts_N2.tolist(), strict=True)):
            if isinstance(self._config, Mntp):
                yield self._masked(ids_n, slice(start, end), key_of("mask", self._seed, step, first_row + row))
            else:
                labels_n = ids_n.copy()
                labels_n[: max(1, start)] = IGNORED  # and what follows the text is predicted too: that it is over
                yield Exercise(ids_n, labels_n)

    def _masked(self, ids_n: NDArray[np.int64], text: slice, key: int) -> Exercise:
        assert isinstance(self._config, Mntp), "the one that masks"
        assert self._mask_id is not None, "such losses have a mask"
        maskable_1n = torch.zeros(1, len(ids_n), dtype=torch.bool)
        maskable_1n[0, text] = True
        inputs_1n, labels_1n = mask_tokens(
            torch.from_numpy(ids_n)[None],
            maskable_1n,
            self._config.mask_probability,
            self._mask_id,
            self._head.out_features,
            torch.Generator().manual_seed(key >> 1),
            self._config.replacement,
        )
        labels_1n[0, 0] = IGNORED  # no state is before it
        return Exercise(inputs_1n[0].numpy(), labels_1n[0].numpy())

    def _targets(self, exercises: Sequence[Exercise]) -> Targets:
        """Of all ranks."""
        counts = [one.num_targets for one in exercises]
        own = torch.tensor([sum(counts), sum(count > 0 for count in counts)], device=self._encoder.device)
        num_tokens, num_samples = sum_over_ranks(own).tolist()
        return Targets(num_tokens, num_samples)

    def _share(self, exercises: Sequence[Exercise], whole: Targets) -> torch.Tensor:
        lengths_B = np.array([len(one.inputs_n) for one in exercises], np.int64)
        batch = Batch(np.concatenate([one.inputs_n for one in exercises]), lengths_B)
        labels = Batch(np.concatenate([one.labels_n for one in exercises]), lengths_B)
        labels_BL = torch.from_numpy(labels.pad(IGNORED, self._trunk.side)).to(self._encoder.device)
        with self._encoder.autocast():
            states_BLD = self._trunk(batch).states_BLD
            return next_token(states_BLD, self._head, labels_BL, self._config.weighting, whole)
