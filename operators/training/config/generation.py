"""The `generation:` section of a training config: language modelling beside every step (GRIT, arXiv 2402.09906)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.training.config.choice import fault_of
from operators.training.config.language import CausalLm, Weighting
from operators.training.config.sets import TrainingSet


class Generation(BaseModel):
    """Each step has, besides its batch of `sets`, one of these, with causal attention: loss + balance * causal_lm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sets: tuple[TrainingSet, ...] = Field(
        min_length=1, description="texts; or pairs, of which the positive is learnt to be said after the query"
    )
    size: int = Field(default=32, ge=1, description="rows of a step, of all workers together")
    balance: float = Field(default=1.0, gt=0, description="weight of this loss, whatever the number of workers")
    weighting: Weighting = Field(default="token", description="as of causal_lm")

    @property
    def loss(self) -> CausalLm:
        """The loss of its sets."""
        return CausalLm(loss="causal_lm", weighting=self.weighting)

    @model_validator(mode="after")
    def _fits(self) -> Generation:
        for one in self.sets:
            fault = "leave out objective: it is causal_lm" if one.objective else fault_of(self.loss, one)
            if fault is not None:
                raise ValueError(f"sets.{one.name}: {fault}")
        return self
