"""One step of a training: a rank's batch in, trained weights and the step's figures out.

    the passes of the batch's set -> share of the loss -> gradients, summed over ranks -> clipped -> AdamW

What a set's passes are, operators.training.steps.passes says. Dropout is seeded by step, rank and micro-batch, so that
a step is the same whenever it is done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from operators.errors import InputError
from operators.training.data.batch_plan import PlannedBatch
from operators.training.model.encoder import Encoder
from operators.training.model.sharding import clip_gradients, is_sharded
from operators.training.objectives.gathering import sum_gradients, sum_over_ranks
from operators.training.record.curve import StepMetrics
from operators.training.steps.optimization import Optimization, make_optimizer, set_rate
from operators.training.steps.passes import Passes
from operators.training.steps.rank_batches import RankBatch


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
    """Trains an encoder, and the parameters that losses have of their own, a step at a time."""

    def __init__(
        self,
        encoder: Encoder,
        passes: Sequence[Passes],
        set_names: Sequence[str],
        optimization: Optimization,
        num_steps: int,
    ) -> None:
        self.encoder, self.passes = encoder, passes
        self._set_names, self._config, self._num_steps = set_names, optimization, num_steps
        self.parameters = trained_parameters(encoder, passes)
        self.optimizer = make_optimizer(self.parameters, optimization)

    def __call__(self, batch: RankBatch) -> StepMetrics:
        """Train on a batch. Raises TrainingDiverged, on every rank, and leaves the weights as they were."""
        clock = time.perf_counter()
        planned = batch.planned
        rate = self._config.rate(planned.step, self._num_steps)
        with self.encoder.casts_shared():
            loss = self.passes[planned.set_index](batch)
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


def trained_parameters(encoder: Encoder, passes: Sequence[Passes]) -> dict[str, torch.nn.Parameter]:
    """All parameters of a run by name, in the order that every rank has them."""
    own = {
        f"objectives.{number}.{name}": parameter
        for number, one in enumerate(passes)
        for name, parameter in one.own_parameters.items()
    }
    return encoder.trained() | own
