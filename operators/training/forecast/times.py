"""Time of one optimisation step, part by part, in seconds.

products    a forward pass takes 2 N FLOPs a token and 4 L q a pair of tokens (`Flops`); with backward 3 times that,
            2 times where only adapters get gradients; once more with checkpointing, and once more for the share
            that GradCache encodes twice (Gao et al. 2021, arXiv 2101.06983). At the utilisation assumed
gradients   of every GPU summed: a ring sends 2 (W - 1) / W of 4 bytes a trained parameter; after backward, so that
            nothing hides it
shards      FSDP2 gathers the weights in each forward and backward pass and scatters their gradients, (W - 1) / W
            of them each time (Rajbhandari et al. 2020, arXiv 1910.02054, section 7); products hide it, as far as
            they take longer
optimizer   AdamW reads 16 bytes of a parameter's state and writes 12, at the memory's speed
vectors     the representations of all GPUs gathered, and their gradients brought back
"""

from __future__ import annotations

from dataclasses import dataclass

from operators.training.forecast.accelerators import LINK_SHARE, Accelerator
from operators.training.forecast.memory import num_trained
from operators.training.forecast.method import Load, Method
from operators.training.forecast.shape import ModelShape

_ADAMW_BYTES = 28
_NF4_SLOWER = 1.25  # assumed: weights are unpacked before each product


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step."""

    products: float
    gradients: float
    shards: float  # of which products hide what they can
    optimizer: float
    vectors: float

    @property
    def total(self) -> float:
        """All of it."""
        return max(self.products, self.shards) + self.gradients + self.optimizer + self.vectors

    @property
    def waiting_share(self) -> float:
        """Share of the step in which no product is computed."""
        return 1 - self.products / self.total


def forward_flops(shape: ModelShape, load: Load) -> float:
    """FLOPs of one forward pass over a whole step, of all GPUs."""
    return shape.flops.per_token * load.step_tokens + shape.flops.per_pair * load.step_pairs


def useful_flops(shape: ModelShape, method: Method, load: Load) -> float:
    """FLOPs of one forward pass and its backward, through weights that are trained or only to what lies before."""
    return (3 if method.rank is None else 2) * forward_flops(shape, load)


def step_flops(shape: ModelShape, method: Method, load: Load, num_gpus: int) -> float:
    """FLOPs that a step computes, of all GPUs."""
    forwards = 1 + load.encoded_twice(num_gpus) + (1 if method.checkpointing else 0)
    total = useful_flops(shape, method, load) + (forwards - 1) * forward_flops(shape, load)
    if method.rank is not None:
        total += 2.0 * (forwards + 2) * shape.adapter_parameters(method.rank) * load.step_tokens
    return total


def step_time(
    shape: ModelShape, method: Method, load: Load, gpu: Accelerator, num_gpus: int, utilization: float | None = None
) -> StepTime:
    """The time of a step on `num_gpus`; `utilization` in place of the accelerator's assumed one."""
    peak = gpu.flops_bfloat16 if method.precision == "bfloat16" else gpu.flops_float32
    speed = num_gpus * peak * (utilization if utilization is not None else gpu.utilization)
    ring = (num_gpus - 1) / num_gpus / (LINK_SHARE * gpu.link(num_gpus))  # seconds a byte
    trained = num_trained(shape, method)
    return StepTime(
        products=step_flops(shape, method, load, num_gpus) / speed * (_NF4_SLOWER if method.frozen == "nf4" else 1),
        gradients=0.0 if method.sharded else 2 * 4 * trained * ring,
        shards=_shard_bytes(shape, method, load, num_gpus) * ring,
        optimizer=_ADAMW_BYTES * trained / (num_gpus if method.sharded else 1) / gpu.bandwidth,
        vectors=2 * 4 * load.texts * load.dim * ring,
    )


def _shard_bytes(shape: ModelShape, method: Method, load: Load, num_gpus: int) -> float:
    """What FSDP2 gathers and scatters of weights in a step."""
    if not method.sharded:
        return 0.0
    own = load.step_tokens / num_gpus
    passes, again = load.passes(own), load.encoded_twice(num_gpus)
    frozen = {"float32": 4, "bfloat16": 2, "nf4": 2}[method.frozen]
    each = shape.num_parameters * (method.compute_bytes if method.rank is None else frozen)
    return passes * ((2 + again) * each + 4.0 * num_trained(shape, method))
