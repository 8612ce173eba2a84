"""What a set's batches add to the gradients of a model: the passes of a step, by kind of loss.

VectorPasses     texts -> vectors -> a loss of all vectors of the global batch (GradCache)
GritPasses       the same, and language modelling on a batch of its own, in one step
operators.training.steps.language_passes, operators.training.steps.denoising_passes: the others
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch

from operators.embedder.tokens.batching import Batch
from operators.training.data.mixing import key_of
from operators.training.model.encoder import Encoder
from operators.training.model.sharding import agreed_passes
from operators.training.objectives.language import grit
from operators.training.objectives.set_objective import SetObjective
from operators.training.objectives.sparsity import Sparsity
from operators.training.steps.grad_cache import Tower, cached_backward
from operators.training.steps.language_passes import LanguagePasses
from operators.training.steps.rank_batches import RankBatch


class Passes(Protocol):
    """Adds the gradients of a rank's share of the loss of a batch, and returns the share."""

    @property
    def own_parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """Those that are trained beside the encoder's."""

    def __call__(self, batch: RankBatch) -> torch.Tensor: ...


class VectorPasses:
    """Activations of at most `tokens` padded tokens are held; micro-batches beyond that are encoded twice."""

    def __init__(
        self, encoder: Encoder, objective: SetObjective, tokens: int, seed: int, sparsity: Sparsity | None = None
    ) -> None:
        self._encoder, self._objective, self._sparsity = encoder, objective, sparsity
        self._tokens, self._seed = tokens, seed
        self.own_parameters = dict(objective.named_parameters())

    def __call__(self, batch: RankBatch) -> torch.Tensor:
        """See `Passes`."""
        facts = batch.facts.to(self._encoder.device)

        def loss(vectors_ND: torch.Tensor) -> torch.Tensor:
            if len(vectors_ND) > num_texts:  # those of idle passes
                vectors_ND = vectors_ND[:num_texts]
            share: torch.Tensor = self._objective(vectors_ND, facts)
            if self._sparsity is None:
                return share
            return share + self._sparsity(vectors_ND, facts.rows, batch.planned.step)

        num_texts, num_passes = len(batch.tokenized.ids), len(batch.micro_batches.rows)
        kept = kept_passes(batch, self._tokens)
        if self._encoder.is_sharded:
            num_passes, kept = agreed_passes(num_passes, kept, self._encoder.device)
        tower = text_tower(self._encoder, self._encoder.device, batch, self._seed, num_passes)
        return cached_backward([tower], lambda vectors: loss(vectors[0]), kept=kept)


class GritPasses:
    """A set's own loss and, beside it in every step, language modelling with the same weights (arXiv 2402.09906)."""

    def __init__(self, representation: Passes, generation: LanguagePasses, balance: float) -> None:
        self._representation, self._generation, self._balance = representation, generation, balance
        self.own_parameters = representation.own_parameters

    def __call__(self, batch: RankBatch) -> torch.Tensor:
        """See `Passes`."""
        assert batch.beside is not None, "every batch of such a run has one of texts to generate beside it"
        representation = self._representation(batch)
        return grit(representation, self._generation(batch.beside, self._balance), self._balance)


def text_tower(
    encode: Callable[[Batch], torch.Tensor], device: torch.device, batch: RankBatch, seed: int, num_passes: int
) -> Tower:
    """The representations of a rank's texts, in their order; dropout is seeded by step, rank and pass.

    Passes beyond those of the batch encode its shortest text, for other ranks' sake; what they give comes last.
    """

    def seeded_encode(seeded: tuple[int, Batch]) -> torch.Tensor:
        torch.manual_seed(seeded[0])
        return encode(seeded[1])

    cut, num_texts = batch.micro_batches, len(batch.tokenized.ids)
    num_idle = num_passes - len(cut.rows)
    passes = [*cut.rows, *[cut.rows[-1][-1:]] * num_idle]
    step, rank = batch.planned.step, batch.facts.rows.rank
    seeds = [key_of("dropout", seed, step, rank, number) >> 1 for number in range(num_passes)]  # 63 bits
    micro = [(seed, batch.tokenized.batch(rows)) for seed, rows in zip(seeds, passes, strict=True)]
    idle = np.arange(num_texts, num_texts + num_idle)
    order_N = torch.from_numpy(np.concatenate([*cut.rows, idle])).to(device)
    return Tower(seeded_encode, micro, order_N)


def kept_passes(batch: RankBatch, tokens: int) -> int:
    """How many of the last micro-batches keep their graph, beside the largest other one, in `tokens` padded tokens."""
    sizes = [len(rows) * max(len(batch.tokenized.ids[row]) for row in rows) for rows in batch.micro_batches.rows]
    if sum(sizes) <= tokens:
        return len(sizes)
    room = tokens - max(sizes)
    fitting = np.cumsum(sizes[::-1]) <= room
    return max(1, int(fitting.sum()))
