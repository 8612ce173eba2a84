"""A training on paper: whether it fits a GPU, what takes its memory, and how long a step is."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

from operators.training.forecast.accelerators import Accelerator
from operators.training.forecast.memory import Memory, memory
from operators.training.forecast.method import Load, Method
from operators.training.forecast.shape import ModelShape
from operators.training.forecast.times import StepTime, step_time, useful_flops


@dataclass(frozen=True, slots=True)
class Forecast:
    """One GPU's memory and the step's time."""

    gpu: Accelerator
    num_gpus: int
    memory: Memory
    time: StepTime
    rows: int  # of a step
    tokens: float  # of a step
    held_tokens: float  # whose activations a GPU has at once
    useful_flops: float  # of a step: one forward and its backward, whatever else is computed

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.memory.total <= self.gpu.memory_bytes

    @property
    def breaks_first(self) -> str | None:
        """The part, in the order in which a run needs them, with which memory is full; None where all fit."""
        parts = self.memory.parts
        sums = zip(parts, itertools.accumulate(parts.values()), strict=True)
        return next((name for name, total in sums if total > self.gpu.memory_bytes), None)

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs."""
        return self.tokens / self.time.total

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: useful FLOPs over what the GPUs could in bfloat16 (PaLM, arXiv 2204.02311, B)."""
        return self.useful_flops / (self.time.total * self.num_gpus * self.gpu.flops_bfloat16)

    @property
    def hours_per_million_rows(self) -> float:
        """Of all GPUs together working."""
        return 1e6 / self.rows * self.time.total / 3600


def forecast(
    shape: ModelShape, method: Method, load: Load, gpu: Accelerator, num_gpus: int, utilization: float | None = None
) -> Forecast:
    """What a training would take; nothing is loaded and nothing measured."""
    return Forecast(
        gpu,
        num_gpus,
        memory(shape, method, load, num_gpus),
        step_time(shape, method, load, gpu, num_gpus, utilization),
        load.rows,
        load.step_tokens,
        load.held_tokens(num_gpus),
        useful_flops(shape, method, load),
    )


def widest(shape: ModelShape, method: Method, load: Load, gpu: Accelerator, num_gpus: int) -> Load:
    """The load with the most tokens held that fit, a power of two of at most `load.tokens`; a pass has no more.

    Where not even the longest text fits, that of the longest text.
    """
    tokens = load.tokens
    while True:
        tried = dataclasses.replace(load, tokens=tokens, pass_tokens=min(tokens, load.pass_tokens))
        fits = memory(shape, method, tried, num_gpus).total <= gpu.memory_bytes
        if fits or tokens // 2 < max(load.query_tokens, load.document_tokens):
            return tried
        tokens //= 2
