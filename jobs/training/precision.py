"""In what precision a run trains, where its config leaves that to the hardware: decided once, by all of its workers.

The run's folder keeps it, so that a run that goes on elsewhere computes as it began.
"""

from __future__ import annotations

import logging
import time
from typing import TypeVar

import torch
import torch.distributed as dist

from jobs.training.run import TrainRun
from operators.embedder.model.device import multiplies
from operators.storage import create_exclusive, read_bytes
from operators.training.config.tuning import Tuning

logger = logging.getLogger(__name__)
PRECISION = "precision"
_T = TypeVar("_T")
_ROWS, _WIDTH, _TIMES = 256, 384, 3  # of the products by which the price of emulation is measured: a few ms


def settled_tuning(run: TrainRun, device: torch.device, rank: int) -> Tuning:
    """The run's tuning with its precision settled; every rank calls it, and gets the same."""
    tuning = run.config.tuning
    in_hardware = multiplies(torch.bfloat16, device)
    if tuning.precision == "auto":
        place = run.output / PRECISION
        everywhere = all(_of_all_ranks(in_hardware))
        wanted = tuning.settled(everywhere).precision
        if rank == 0:
            create_exclusive(place, wanted.encode())
        kept = _of_all_ranks(read_bytes(place).decode() if rank == 0 else "")[0]
        tuning = tuning.model_copy(update={"precision": kept})
    if tuning.precision == "bfloat16" and not in_hardware and rank == 0:
        logger.warning(
            "bfloat16 is emulated on this %s, where products in it take %.0f times as long as in float32: "
            "set tuning.precision to auto or float32",
            device.type,
            emulated_factor(device),
        )
    return tuning


def emulated_factor(device: torch.device) -> float:
    """How many times as long a product in bfloat16 takes here as one in float32."""
    seconds = [_seconds(dtype, device) for dtype in (torch.bfloat16, torch.float32)]
    return seconds[0] / seconds[1]


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The shortest of a few products, after one that makes the kernel."""
    left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in ((_ROWS, _WIDTH), (_WIDTH, _WIDTH)))
    took = []
    for _ in range(1 + _TIMES):
        begun = time.perf_counter()
        float((left @ right)[0, 0])  # waits for a device that computes beside us
        took.append(time.perf_counter() - begun)
    return min(took[1:])


def _of_all_ranks(own: _T) -> list[_T]:
    if not dist.is_initialized():
        return [own]
    found = [own] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
