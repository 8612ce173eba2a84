"""The training function of every rank: all of them begin at the same step, or none does."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist

from jobs.training.board import final_faults_told
from jobs.training.rank import TrainWorker
from jobs.training.run import TrainRun
from operators.errors import InputError
from operators.training.record.curve import Curve
from operators.training.record.outcome import Trained


def train_worker(run: TrainRun, threads: int, board: Any) -> Trained:
    """The training function of every rank; what the first one returns counts."""
    with suppress(OSError):  # where it is another machine's, nothing in the config is relative
        os.chdir(run.directory)  # Ray Train has put us into a folder of its own
    told: str | None = ray.get(board.fault.remote())
    if told is not None:  # the workers before us ended on it
        return Trained(Curve(), fault=told)
    rank, world_size = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    begun: list[int | str] = [0] * world_size  # the first step of each rank, or why it cannot begin
    worker: TrainWorker | None = None
    try:
        worker = TrainWorker(run, rank, world_size, threads, board)
        begun[rank] = worker.first_step
    except InputError as error:
        begun[rank] = str(error)
    if world_size > 1:
        dist.all_gather_object(begun, begun[rank])
    fault = next((one for one in begun if isinstance(one, str)), None)
    if worker is None or fault is not None:
        return Trained(Curve(), fault=fault)  # not a failure to recover from: it would be the same again
    if len(set(begun)) > 1:
        raise RuntimeError(f"ranks found different states to go on from, of the steps {begun}: to be tried again")
    with final_faults_told(board):
        return worker.train()
