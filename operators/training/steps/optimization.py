"""The optimizer of a run and how its learning rate goes: AdamW, warm-up, then linear, cosine or constant.

Loshchilov and Hutter 2017, arXiv 1711.05101. No weight decay on biases and norms, as BERT's authors do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch


class Optimization(BaseModel):
    """How weights are changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(default=2e-5, gt=0, description="the largest, after warm-up")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="linear", description="after warm-up, down to 0")
    warmup: float = Field(default=0.1, ge=0, description="steps of warm-up; below 1: a share of all steps")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's, of matrices alone")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's")
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW's")
    max_gradient_norm: float = Field(default=1.0, gt=0, description="a longer gradient is scaled down to it")

    def warmup_steps(self, num_steps: int) -> int:
        """Steps until the learning rate is at its largest."""
        return round(self.warmup * num_steps) if self.warmup < 1 else round(self.warmup)

    def rate(self, step: int, num_steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup = self.warmup_steps(num_steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, num_steps - warmup)
        if self.schedule == "linear":
            return self.learning_rate * max(0.0, 1 - done)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate


def make_optimizer(parameters: Mapping[str, torch.nn.Parameter], config: Optimization) -> torch.optim.AdamW:
    """AdamW over named parameters; vectors (biases, norms, temperatures) do not decay."""
    import torch  # 2 s, which whoever reads a config need not wait for

    from operators.training.model.sharding import is_sharded

    groups = [
        {
            "params": [one for one in parameters.values() if (one.ndim > 1) == decays and is_sharded(one) == sharded],
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
        for sharded in (False, True)  # the kernels of several parameters at once take one kind
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=next(iter(parameters.values())).is_cuda or None,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use a learning rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
