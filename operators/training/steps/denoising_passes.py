"""The passes of template denoising (PromptBERT): two views of a text by two prompts, each less what its prompt gives.

Shapes: b rows of a rank, N = 2 b texts, L tokens of a template without text, S lengths of texts, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from operators.errors import InputError
from operators.training.data.mixing import key_of
from operators.training.model.encoder import Encoder, Reader, Role
from operators.training.objectives.denoising import denoised, empty_template_positions
from operators.training.objectives.set_objective import SetObjective
from operators.training.steps.grad_cache import Tower, cached_backward
from operators.training.steps.passes import kept_passes, text_tower
from operators.training.steps.rank_batches import RankBatch

_ROWS = 64  # of a template in a pass, each of some ten tokens


@dataclass(frozen=True, slots=True)
class _Template:
    """A prompt without text."""

    ids_L: torch.Tensor
    num_before: int  # tokens ahead of the text

    def positions(self, lengths_S: torch.Tensor) -> torch.Tensor:
        """positions_SL of its tokens, as texts of these lengths would put them."""
        return empty_template_positions(self.num_before, len(self.ids_L) - self.num_before, lengths_S)


class DenoisingPasses:
    """See operators.training.steps.passes.Passes. Raises InputError for a model whose recipe reads no `[MASK]`."""

    def __init__(self, encoder: Encoder, objective: SetObjective, reader: Reader, tokens: int, seed: int) -> None:
        recipe = encoder.spec.recipe
        if recipe.pooling != "token" or recipe.padding != "right":
            raise InputError(
                f"template_denoising needs a recipe that reads the state of a token in its prompt (pooling: token), "
                f"and {encoder.spec.model} has pooling {recipe.pooling}"
            )
        if encoder.is_sharded:
            raise InputError("take tuning.sharding out: template_denoising is computed on whole models")
        self._encoder, self._objective = encoder, objective
        self._tokens, self._seed = tokens, seed
        roles: tuple[Role, Role] = ("query", "document")
        self._templates = [_template(reader, role, encoder.device) for role in roles]
        self.own_parameters = dict(objective.named_parameters())

    def __call__(self, batch: RankBatch) -> torch.Tensor:
        """See `Passes`."""
        facts = batch.facts.to(self._encoder.device)
        starts_N, ends_N = torch.from_numpy(batch.tokenized.texts_N2).to(self._encoder.device).T
        views = (ends_N - starts_N).chunk(2)  # lengths of the texts in each
        lengths = [torch.unique(lengths_b) for lengths_b in views]  # ascending

        def loss(vectors: list[torch.Tensor]) -> torch.Tensor:
            states, biases = vectors[0].chunk(2), vectors[1:]
            parts = [denoised(*view) for view in zip(states, views, biases, lengths, strict=True)]
            share: torch.Tensor = self._objective(self._encoder.finished(torch.cat(parts)), facts)
            return share

        texts = text_tower(self._encoder.pooled, self._encoder.device, batch, self._seed, len(batch.micro_batches.rows))
        templates = [self._template_tower(batch, *view) for view in zip((0, 1), lengths, strict=True)]
        num_passes = sum(len(tower.micro_batches) for tower in templates)
        kept = kept_passes(batch, self._tokens) + num_passes
        return cached_backward([texts, *templates], lambda vectors: loss(list(vectors)), kept=kept)

    def _template_tower(self, batch: RankBatch, view: int, lengths_S: torch.Tensor) -> Tower:
        """The states of a view's template for each length of its texts."""
        template = self._templates[view]

        def encode(seeded: tuple[int, torch.Tensor]) -> torch.Tensor:
            torch.manual_seed(seeded[0])
            return self._encoder.template_states(template.ids_L, template.positions(seeded[1]))

        return Tower(encode, list(self._seeded(batch, view, lengths_S)))

    def _seeded(self, batch: RankBatch, view: int, lengths_S: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        step, rank = batch.planned.step, batch.facts.rows.rank
        for number, part_S in enumerate(torch.split(lengths_S, _ROWS)):
            yield key_of("template dropout", self._seed, step, rank, view, number) >> 1, part_S


def _template(reader: Reader, role: Role, device: torch.device) -> _Template:
    ids_L, layout = reader.empty(role), reader.layout(role)
    assert len(ids_L) == layout.fixed, "a template without text is what stands around a text"
    return _Template(torch.from_numpy(np.array(ids_L)).to(device), layout.first + layout.prefix)
