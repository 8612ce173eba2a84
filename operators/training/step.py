"""One step of a training: a rank's batch in, trained weights and the step's figures out.

    texts -> micro-batches -> vectors -> share of the loss -> gradients, summed over ranks -> clipped -> AdamW

Activations of at most `tokens` padded tokens are held at once; micro-batches beyond that are encoded twice (GradCache).
Dropout is seeded by step, rank and micro-batch, so that a step is the same whenever it is done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from operators.embedder.batching import Batch
from operators.errors import InputError
from operators.training.batch_plan import PlannedBatch
from operators.training.curve import StepMetrics
from operators.training.encoder import Encoder
from operators.training.gathering import sum_gradients, sum_over_ranks
from operators.training.grad_cache import Tower, cached_backward
from operators.training.micro_batches import MicroBatches
from operators.training.mixing import key_of
from operators.training.optimization import Optimization, make_optimizer, set_rate
from operators.training.rank_batches import RankBatch
from operators.training.set_objective import SetObjective
from operators.training.sharding import agreed_passes, clip_gradients, is_sharded


class TrainingDiverged(InputError):
    """The loss or its gradient is no finite number any more."""

    def __init__(self, planned: PlannedBatch, set_name: str, loss: float, gradient_norm: float) -> None:
        self.planned = planned
        super().__init__(
            f"lower optimization.learning_rate, or look at the batch: at step {planned.step} the loss of the set "
            f"{set_name!r} is {loss:g} and the norm of its gradient {gradient_norm:g}; weights are as after step "
            f"{planned.step - 1}"
        )


class TrainStep:
    """Trains an encoder, and the parameters that objectives have of their own, a step at a time."""

    def __init__(
        self,
        encoder: Encoder,
        objectives: Sequence[SetObjective],
        set_names: Sequence[str],
        optimization: Optimization,
        num_steps: int,
        tokens: int,
        seed: int,
    ) -> None:
        self.encoder, self.objectives = encoder, objectives
        self._set_names, self._config, self._num_steps = set_names, optimization, num_steps
        self._tokens, self._seed = tokens, seed
        self.parameters = trained_parameters(encoder, objectives)
        self.optimizer = make_optimizer(self.parameters, optimization)

    def __call__(self, batch: RankBatch) -> StepMetrics:
        """Train on a batch. Raises TrainingDiverged, on every rank, and leaves the weights as they were."""
        clock = time.perf_counter()
        planned = batch.planned
        rate = self._config.rate(planned.step, self._num_steps)
        loss = self._backward(batch)
        sum_gradients(one for one in self.parameters.values() if not is_sharded(one))
        norm = clip_gradients(self.parameters.values(), self._config.max_gradient_norm)
        totals = torch.tensor([float(loss), float(batch.num_tokens)], dtype=torch.float64)
        whole_loss, num_tokens = sum_over_ranks(totals.to(self.encoder.device)).tolist()
        if not (math.isfinite(whole_loss) and math.isfinite(norm)):
            self.optimizer.zero_grad()
            raise TrainingDiverged(planned, self._set_names[planned.set_index], whole_loss, norm)
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return StepMetrics(
            step=planned.step,
            set=self._set_names[planned.set_index],
            epoch=planned.epoch,
            loss=whole_loss,
            learning_rate=rate,
            gradient_norm=norm,
            rows=len(planned.rows_B),
            tokens=int(num_tokens),
            seconds=time.perf_counter() - clock,
        )

    def _backward(self, batch: RankBatch) -> torch.Tensor:
        objective = self.objectives[batch.planned.set_index]
        facts = batch.facts.to(self.encoder.device)
        cut = batch.micro_batches
        passes, num_texts = list(cut.rows), len(batch.tokenized.ids)
        kept = kept_passes(cut, batch, self._tokens)
        if self.encoder.is_sharded:
            num_passes, kept = agreed_passes(len(passes), kept, self.encoder.device)
            passes += [cut.rows[-1][-1:]] * (num_passes - len(passes))  # the shortest text, for the other ranks' sake
        micro = [(self._dropout_seed(batch, number), batch.tokenized.batch(rows)) for number, rows in enumerate(passes)]
        idle = np.arange(num_texts, num_texts + len(passes) - len(cut.rows))
        rows_N = torch.from_numpy(np.concatenate([*cut.rows, idle])).to(self.encoder.device)
        tower = Tower(self._encode, micro, rows_N)
        with self.encoder.casts_shared():
            return cached_backward([tower], lambda vectors: objective(vectors[0][:num_texts], facts), kept=kept)

    def _encode(self, seeded: tuple[int, Batch]) -> torch.Tensor:
        seed, batch = seeded
        torch.manual_seed(seed)
        vectors_BD: torch.Tensor = self.encoder(batch)
        return vectors_BD

    def _dropout_seed(self, batch: RankBatch, number: int) -> int:
        return key_of("dropout", self._seed, batch.planned.step, batch.facts.rows.rank, number) >> 1  # 63 bits


def trained_parameters(encoder: Encoder, objectives: Sequence[SetObjective]) -> dict[str, torch.nn.Parameter]:
    """All parameters of a run by name, in the order that every rank has them."""
    own = {
        f"objectives.{number}.{name}": parameter
        for number, objective in enumerate(objectives)
        for name, parameter in objective.named_parameters()
    }
    return encoder.trained() | own


def kept_passes(cut: MicroBatches, batch: RankBatch, tokens: int) -> int:
    """How many of the last micro-batches keep their graph, beside the largest other one, in `tokens` padded tokens."""
    sizes = [len(rows) * max(len(batch.tokenized.ids[row]) for row in rows) for rows in cut.rows]
    if sum(sizes) <= tokens:
        return len(sizes)
    room = tokens - max(sizes)
    fitting = np.cumsum(sizes[::-1]) <= room
    return max(1, int(fitting.sum()))
