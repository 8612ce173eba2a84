"""A function on several ranks of one machine: processes with gloo, over files and loopback alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_ranks(world: int, function: Callable[[], Any], folder: Path) -> list[Any]:
    """What `function`, of a module and without arguments, returned on each rank: tensors, numbers, lists and dicts."""
    multiprocessing.spawn(_rank, args=(world, function, str(folder)), nprocs=world)
    return [torch.load(folder / f"rank-{rank}-of-{world}.pt") for rank in range(world)]


def _rank(rank: int, world: int, function: Callable[[], Any], folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
    torch.save(function(), Path(folder) / f"rank-{rank}-of-{world}.pt")
    dist.barrier()
    dist.destroy_process_group()
