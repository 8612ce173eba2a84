"""What texts held back say of a language model in training: minus its loss, so that more is better."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from operators.training.data.batch_plan import rank_slice
from operators.training.steps.language_passes import LanguagePasses
from operators.training.steps.rank_batches import ReadySet


@dataclass(frozen=True, slots=True)
class LanguageDev:
    """A set's held-back rows with the loss of the set, on one of several ranks."""

    ready: ReadySet
    passes: LanguagePasses
    rank: int
    world_size: int
    pass_tokens: int
    judges: bool  # whether it is among the main scores: what is generated beside (GRIT) is shown alone

    @property
    def name(self) -> str:
        """What its score is called."""
        return f"{self.ready.config.name} dev negative_loss"

    def __call__(self, most_rows: int) -> float:
        """The score; the same on every rank, each of which has to call it."""
        num_rows = min(len(self.ready.rows), most_rows)
        own = rank_slice(num_rows, self.rank, self.world_size)
        tokenized = self.ready.tokenized(self.ready.rows.take(np.arange(own.start, own.stop)))
        return -self.passes.mean_loss(tokenized, own.start, self.pass_tokens)
