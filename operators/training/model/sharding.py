"""A trunk of which each rank keeps a part: FSDP2 (arXiv 2304.11277), after ZeRO-3 (arXiv 1910.02054).

Of each weight, its gradient and its moments a rank keeps 1 / ranks of the rows. A block's weights are gathered before
it computes, in the forward pass and again in the backward one, and dropped after it. Its gradient is summed over ranks
in float32, each rank getting its rows, after every pass: kept whole until the last pass of a step, gradients would take
as much memory as all trained weights, 28 GB at 7B.

Gathering and summing want every rank to do the same passes in the same order: `agreed_passes`. What is no part of the
trunk (heads, a learnt temperature) is whole on every rank; its gradients are `gathering.sum_gradients`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers.modeling_layers import GradientCheckpointingLayer

from operators.errors import InputError


def rank_mesh(device: torch.device) -> DeviceMesh:
    """All ranks in a row. Raises InputError where there is no process group."""
    if not dist.is_initialized():
        raise InputError("set tuning.sharding to none: there is no process group whose ranks could share the model")
    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard(trunk: torch.nn.Module, mesh: DeviceMesh, precision: Literal["float32", "bfloat16"]) -> None:
    """Cut every weight of a trunk over the ranks, block by block; each has the same whole one before.

    The trunk may be on the CPU: a rank's rows go to its device. With bfloat16, weights are gathered in it.
    """
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = half if precision == "bfloat16" else MixedPrecisionPolicy()
    blocks = [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise InputError(f"set tuning.sharding to none: {type(trunk).__name__} has no blocks that are known")
    for module in (*blocks, trunk):
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        assert isinstance(sharded, FSDPModule), "fully_shard changes the class"
        sharded.set_gradient_divide_factor(1.0)  # shares of a loss add up, see gathering
        sharded.set_force_sum_reduction_for_comms(True)  # any other factor than the ranks' is NCCL's alone


@contextmanager
def one_rank_at_a_time(device: torch.device) -> Iterator[None]:
    """Each machine's ranks have their turn, one after another: one whole model in its memory, not one for each."""
    ranks = [(0, 0)] * dist.get_world_size()
    own = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    dist.all_gather_object(ranks, own)
    turns = max(int(rank) for rank in ranks) + 1  # type: ignore[call-overload]
    for _ in range(own):
        _meet(device)
    try:
        yield
    finally:
        for _ in range(own, turns):
            _meet(device)


def _meet(device: torch.device) -> None:
    """A barrier; NCCL's own wants to be told the device."""
    here = torch.zeros(1, device=device)
    dist.all_reduce(here)
    here.item()


def agreed_passes(num: int, kept: int, device: torch.device) -> tuple[int, int]:
    """The most passes that any rank has, and how many of the last ones every rank can keep, once all have so many.

    A rank adds passes of next to nothing to its own until it has as many, and keeps those too.
    """
    most = torch.tensor([num, num - kept], device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    num_passes, encoded_twice = most.tolist()
    return num_passes, num_passes - encoded_twice


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether ranks have different rows of it."""
    return isinstance(tensor, DTensor)


def own_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What this rank has of a tensor, as it lies in memory, and the number of its first row."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    mesh = tensor.device_mesh
    each = -(-len(tensor) // mesh.size())  # as torch.chunk cuts
    first = min(each * mesh.get_local_rank(), len(tensor))
    own = tensor.to_local()
    assert len(own) == min(each, len(tensor) - first), "FSDP cuts rows, evenly"
    return own, first


def clip_gradients(parameters: Iterable[torch.nn.Parameter], most: float) -> float:
    """Scale all gradients down to a norm of at most `most`, over ranks where they are sharded; the norm before it."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [[one for one in trained if is_sharded(one) == sharded] for sharded in (False, True)]
    norms = [get_total_norm([one.grad for one in kind if one.grad is not None]) for kind in kinds if kind]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = whole[0] if len(whole) == 1 else get_total_norm(whole)
    for kind in kinds:
        clip_grads_with_norm_(kind, most, total)
    return float(total)
