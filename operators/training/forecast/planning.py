"""`plan` for a training: the config's own method and the ones that would help, on several numbers of GPUs, on paper."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from operators.training.forecast.accelerators import ACCELERATORS
from operators.training.forecast.config import ForecastConfig
from operators.training.forecast.forecast import Forecast, forecast, widest
from operators.training.forecast.method import Load, Method
from operators.training.forecast.shape import ModelShape

AS_CONFIGURED = "as configured"
_RANK = 16  # of the adapters that are proposed, where the config has none


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Forecasts by method, one for each number of GPUs."""

    model: str
    num_parameters: int
    load: Load
    forecasts: Mapping[str, tuple[Forecast, ...]]  # the config's own first

    @property
    def verdict(self) -> str:
        """Whether the config fits, and if not, what breaks first and what the least change is that fits."""
        own = self.forecasts[AS_CONFIGURED]
        broken = next((one for one in own if not one.fits), None)
        if broken is None:
            return f"fits each of {', '.join(str(one.num_gpus) for one in own)} {own[0].gpu.name}"
        what = (
            f"does not fit {broken.num_gpus} {broken.gpu.name}: {broken.breaks_first} break it, of "
            f"{broken.memory.total / 1e9:.0f} GB in all"
        )
        fitting = [str(one.num_gpus) for one in own if one.fits]
        others = [name for name, found in self.forecasts.items() if all(one.fits for one in found)]
        return "; ".join(
            [
                what,
                *([f"it fits {', '.join(fitting)}"] if fitting else []),
                f"the least change that fits all: {others[0]}" if others else "no change listed fits them all",
            ]
        )

    def to_json(self) -> str:
        """The plan as JSON, with the figures that follow from others."""
        facts: dict[str, Any] = {"model": self.model, "num_parameters": self.num_parameters, "verdict": self.verdict}
        facts["load"] = dataclasses.asdict(self.load)
        facts["forecasts"] = [
            {
                "method": name,
                "gpu": one.gpu.name,
                "num_gpus": one.num_gpus,
                "held_tokens": one.held_tokens,
                "memory": one.memory.parts,
                "memory_bytes": one.memory.total,
                "fits": one.fits,
                "breaks_first": one.breaks_first,
                "step_seconds": one.time.total,
                "tokens_per_second": one.tokens_per_second,
                "hours_per_million_rows": one.hours_per_million_rows,
                "mfu": one.mfu,
            }
            for name, found in self.forecasts.items()
            for one in found
        ]
        return json.dumps(facts, indent=1)


def plan_training(model: str, shape: ModelShape, method: Method, load: Load, config: ForecastConfig) -> TrainingPlan:
    """Forecasts of the config's method with its own `tokens`, and of others with the most that fit of them."""
    gpu = ACCELERATORS[config.gpu]

    def found(one: Method, num_gpus: int, is_own: bool) -> Forecast:
        fitted = load if is_own else widest(shape, one, load, gpu, num_gpus)
        return forecast(shape, one, fitted, gpu, num_gpus, config.utilization)

    forecasts = {
        name: tuple(found(one, num_gpus, name == AS_CONFIGURED) for num_gpus in config.num_gpus)
        for name, one in variants(method).items()
    }
    return TrainingPlan(model, shape.num_parameters, load, forecasts)


def variants(method: Method) -> dict[str, Method]:
    """A method and those that need less memory, each change after the ones that cost less time or quality."""
    lighter, rank = dataclasses.replace(method, checkpointing=True), method.rank or _RANK
    tried = {
        AS_CONFIGURED: method,
        "bfloat16": dataclasses.replace(method, precision="bfloat16"),
        "checkpointing": lighter,
        "FSDP2": dataclasses.replace(method, sharded=method.frozen != "nf4", precision="bfloat16"),
        "FSDP2, checkpointing": dataclasses.replace(lighter, sharded=method.frozen != "nf4", precision="bfloat16"),
        f"LoRA {rank} on bfloat16": Method(rank=rank, frozen="bfloat16", dropout=method.dropout),
        f"LoRA {rank} on bfloat16, checkpointing": Method(
            rank=rank, frozen="bfloat16", dropout=method.dropout, checkpointing=True
        ),
        f"QLoRA {rank}, checkpointing": Method(rank=rank, frozen="nf4", dropout=method.dropout, checkpointing=True),
    }
    kept: dict[str, Method] = {}
    for name, one in tried.items():
        if one not in kept.values():
            kept[name] = one
    return kept
