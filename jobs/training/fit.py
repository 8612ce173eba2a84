"""A run on Ray Train: workers started, failures recovered from, checkpoints stored where the run lies."""

from __future__ import annotations

import pyarrow.fs
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from cluster.session import Session, compute_runtime_env
from jobs.training.board import shown_board
from jobs.training.checkpoints import forget_snapshot
from jobs.training.run import CHECKPOINTS, TrainRun
from jobs.training.sections import TrainCompute
from jobs.training.worker import train_worker
from operators.errors import InputError
from operators.training.record.outcome import Trained


def fit(run: TrainRun, session: Session) -> Trained:
    """Train to the end, from the last checkpoint on. Raises InputError where the run cannot go on as it is."""
    compute = run.config.compute
    workers = num_workers(compute, session)
    threads = compute.cpus_per_worker or _threads(compute, session)
    output = run.output
    forget_snapshot(run)
    # an absolute path, or a bucket's: Ray's own parsing of URLs knows nothing of storage options
    filesystem = None if output.is_local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(output.fs))
    with shown_board(run.num_steps) as board:
        trainer = TorchTrainer(
            lambda: train_worker(run, threads, board),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=bool(compute.gpus_per_worker),
                resources_per_worker={"CPU": threads},
                elastic_resize_monitor_interval_s=compute.resize_seconds,
            ),
            run_config=RunConfig(
                name=CHECKPOINTS,
                storage_path=output.path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=compute.max_failures),
                worker_runtime_env=compute_runtime_env(),
                logging_config=LoggingConfig("WARNING"),
            ),
        )
        try:
            trained = trainer.fit().return_value
        except TrainingFailedError as error:
            fault = ray.get(board.fault.remote())
            raise InputError(fault) if fault is not None else _cause(error) from error
    assert isinstance(trained, Trained), "the first worker returns what the run came to"
    if trained.fault is not None:
        raise InputError(trained.fault)
    return trained


def num_workers(compute: TrainCompute, session: Session) -> int | tuple[int, int]:
    """How many workers to ask for: the config's, else one for each GPU, else one."""
    if compute.workers is not None:
        return compute.workers
    return max(1, session.num_gpus) if compute.gpus_per_worker else 1


def most_workers(compute: TrainCompute, session: Session) -> int:
    """How many workers there may be at once."""
    workers = num_workers(compute, session)
    return workers if isinstance(workers, int) else workers[1]


def _threads(compute: TrainCompute, session: Session) -> int:
    if compute.gpus_per_worker:
        return 1
    return max(1, session.num_cpus // most_workers(compute, session))


def _cause(error: TrainingFailedError) -> Exception:
    """What the user can mend, where a worker said so."""
    failures = getattr(error, "worker_failures", {})
    inputs = [one for one in failures.values() if isinstance(one, InputError)]
    return inputs[0] if inputs else error
