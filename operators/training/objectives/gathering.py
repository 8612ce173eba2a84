"""Representations of all ranks in one place, with gradients that do not depend on the number of ranks.

The convention: every rank's loss is its *share*, and the sum of the shares over ranks is the loss of the global batch.
`gathered` brings a gradient back to the rank that owns the row, summed over all ranks; so the gradient of a parameter
is the *sum* over ranks of what each has, which `sum_gradients` makes. Where DistributedDataParallel or FSDP averages
instead, a share is multiplied by the number of ranks before backward. Published trainers that skip this train with
gradients 1/W as large, and with a balance between losses that changes with W.

    each row by itself (triplet, regression, classes, ranking, cosine)   own mean * `share`, nothing gathered
    contrastive                                                          `gathered_pairs`: is a share
    the whole batch (CoSENT, AnglE, similarities, order)                 of the `gathered` rows, * `share`
    FLOPS                                                                of `sum_over_ranks` of means * share, * `share`
    language                                                             with the targets of all ranks: is a share

Shapes: b rows of this rank, B of all ranks; the other dimensions are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from operators.errors import InputError
from operators.training.objectives.pairs import Pairs

BUCKET_NUMBERS = 1 << 23  # of gradients that travel together: 32 MB, as DistributedDataParallel's 25


@dataclass(frozen=True, slots=True)
class RankRows:
    """Which rows of the global batch each rank has: one after another, in the order of ranks."""

    sizes: tuple[int, ...]
    rank: int

    @property
    def own(self) -> slice:
        """This rank's rows."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    @property
    def total(self) -> int:
        """B."""
        return sum(self.sizes)

    @property
    def share(self) -> float:
        """b / B: the weight of this rank's mean in the mean of all rows, and of a loss that every rank computes."""
        return self.sizes[self.rank] / self.total


def rank_rows(num_rows: int, device: torch.device, group: dist.ProcessGroup | None = None) -> RankRows:
    """The rows of all ranks, which are asked for theirs; one rank without a process group has them all.

    Raises InputError on every rank where one has none.
    """
    if not dist.is_initialized():
        return RankRows((num_rows,), 0)
    size = torch.tensor([num_rows], device=device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, size, group=group)
    rows = RankRows(tuple(int(one) for one in sizes), dist.get_rank(group))
    if not all(rows.sizes):
        raise InputError(f"a batch of {rows.total} rows leaves some of {len(sizes)} ranks without any: {rows.sizes}")
    return rows


def gathered(own: torch.Tensor, rows: RankRows, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """The rows of all ranks, in full; the gradient of this rank's rows is the sum of what all ranks have for them.

    Representations want to be in float32 here, since gradients are summed in the dtype that they have. Ids, masks and
    labels go the same way.
    """
    if len(own) != rows.sizes[rows.rank]:
        raise ValueError(f"rank {rows.rank} has {len(own)} rows, not the {rows.sizes[rows.rank]} that were agreed on")
    if len(rows.sizes) == 1:
        return own
    if own.dtype == torch.bool:
        return _gather(own.to(torch.uint8), rows, group).to(torch.bool)
    if not (own.requires_grad and torch.is_grad_enabled()):
        return _gather(own, rows, group)
    found: torch.Tensor = _Gathered.apply(own, rows, group)  # type: ignore[no-untyped-call]  # torch has no types here
    return found


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, rows: RankRows, group: dist.ProcessGroup | None) -> torch.Tensor:
        ctx.rows, ctx.group = rows, group
        return _gather(own, rows, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        rows: RankRows = ctx.rows
        parts = [_padded(part, max(rows.sizes)) for part in torch.split(gradients[0], list(rows.sizes))]
        own = torch.empty_like(parts[rows.rank])
        dist.reduce_scatter(own, parts, group=ctx.group)
        return own[: rows.sizes[rows.rank]], None, None


def _gather(own: torch.Tensor, rows: RankRows, group: dist.ProcessGroup | None) -> torch.Tensor:
    longest = max(rows.sizes)
    parts = [own.new_empty(longest, *own.shape[1:]) for _ in rows.sizes]
    dist.all_gather(parts, _padded(own.detach(), longest), group=group)
    return torch.cat([part[:size] for part, size in zip(parts, rows.sizes, strict=True)])


def _padded(rows: torch.Tensor, length: int) -> torch.Tensor:
    """Collectives want the same shape of every rank."""
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])]).contiguous()


def gathered_pairs(own: Pairs, rows: RankRows, group: dist.ProcessGroup | None = None) -> Pairs:
    """The pairs of all ranks, of which this rank's are `own`: its contrastive loss is a share."""

    def all_ranks(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else gathered(values, rows, group)

    return replace(
        own.changed(lambda values: gathered(values, rows, group)),
        present_BN=all_ranks(own.present_BN),
        query_ids_B=all_ranks(own.query_ids_B),
        positive_ids_B=all_ranks(own.positive_ids_B),
        negative_ids_BN=all_ranks(own.negative_ids_BN),
        own=rows.own,
    )


def sum_over_ranks(values: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """The sum of a tensor over ranks; its gradient is the sum of all ranks' too."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return values
    total: torch.Tensor = _Summed.apply(values, group)  # type: ignore[no-untyped-call]  # torch has no types here
    return total


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
        ctx.group = group
        return _all_reduced(values, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _all_reduced(gradients[0], ctx.group), None


def _all_reduced(values: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    total = values.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def sum_gradients(parameters: Iterable[torch.nn.Parameter], group: dist.ProcessGroup | None = None) -> None:
    """Give every trained parameter the sum over ranks of its gradients.

    What no rank made use of has none then either, and an optimizer leaves it alone, as on one rank. The order of
    parameters is that of every rank, else ranks wait for each other for ever.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    bucket: list[torch.Tensor] = []
    for parameter in _used_anywhere(trained, group):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (
            bucket[0].dtype != parameter.grad.dtype
            or bucket[0].device != parameter.grad.device
            or sum(gradient.numel() for gradient in bucket) + parameter.grad.numel() > BUCKET_NUMBERS
        ):
            _sum_bucket(bucket, group)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _sum_bucket(bucket, group)


def _used_anywhere(
    parameters: Sequence[torch.nn.Parameter], group: dist.ProcessGroup | None
) -> list[torch.nn.Parameter]:
    if not parameters:
        return []
    used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
    used = used.to(parameters[0].device)
    dist.all_reduce(used, dist.ReduceOp.MAX, group=group)
    return [parameter for parameter, is_used in zip(parameters, used.tolist(), strict=True) if is_used]


def _sum_bucket(gradients: list[torch.Tensor], group: dist.ProcessGroup | None) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=group)
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, summed in zip(gradients, torch.split(flat, sizes), strict=True):
        gradient.copy_(summed.view_as(gradient))
