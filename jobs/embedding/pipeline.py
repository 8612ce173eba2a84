"""The embed pipeline on Ray Data: a dataset of units in, a stream of fragment records out.

    units -> read -> tokenize -> embed (actor pool) -> write -> records on the driver

One row of the dataset is one unit before `read` and one fragment after it (operators.work.fragment.to_row), so Ray
places, retries, streams and backpressures whole fragments; the driver sees their records alone.
`target_max_block_size = 1` makes every fragment a block of its own. Every stage asks for another number of CPUs,
because Ray fuses equal neighbours into one; together they ask for less than two CPUs, so a two-CPU cluster runs all of
them at once. Ray restarts dead workers' tasks without limit: `operators.work.guard` is what bounds it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data

from cluster.metrics import embed_metrics
from cluster.session import compute_runtime_env
from jobs.embedding.capacity import EMBED_CPU_SHARE, workers_that_fit
from jobs.embedding.config import Compute, EmbedConfig
from jobs.embedding.workers import (
    RETRY_MARK,
    EmbedWorker,
    Setup,
    Work,
    read,
    record_from_row,
    scale_of_sample,
    tokenize,
    work_to_row,
    write,
)
from operators.corpus.source import Source
from operators.embedder.recipe.spec import EmbedderSpec
from operators.planning.estimate import mfu_of
from operators.store.fragments import FragmentRecord
from operators.work.fragment import Counts, Unit

READ_CPUS, TOKENIZE_CPUS, WRITE_CPUS = 0.1, 0.25, 0.11
STORAGE_RETRIES = 4


def embed_units(work: Iterable[Work], setup: Setup) -> Iterator[tuple[FragmentRecord, Counts]]:
    """Run the pipeline; yields the record and counts of each fragment as soon as it is on storage."""
    metrics = embed_metrics("embed")
    for row in embedded_rows(work, setup, functools.partial(write, setup=setup)):
        record, counts = record_from_row(row)
        metrics.record(counts, mfu_of(counts, setup.config.hardware))
        yield record, counts


def embedded_rows(work: Iterable[Work], setup: Setup, last: Callable[[pa.Table], pa.Table]) -> Iterator[dict[str, Any]]:
    """Run the pipeline up to the vectors and pass each fragment with them to a `last` stage; yields what that makes."""
    configure_ray_data()
    compute = setup.config.compute
    by_size = sorted(work, key=lambda item: item.unit.size_bytes, reverse=True)  # the short ones fill the end
    pool = actor_pool(compute, _most_fragments(by_size, setup.config.source))
    # So few CPUs a task would let Ray start dozens of processes on each node; a GPU eats what two tokenizers make.
    tasks = ray.data.TaskPoolStrategy(size=2 * pool.max_size if compute.gpus_per_worker else pool.max_size)
    few = ray.data.TaskPoolStrategy(size=max(1, tasks.size // 2))
    units = ray.data.from_arrow([work_to_row(item) for item in by_size])
    stages = (
        units.map_batches(
            functools.partial(read, setup=setup),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=READ_CPUS,
            compute=few,
        )
        .map_batches(
            functools.partial(tokenize, setup=setup),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=TOKENIZE_CPUS,
            compute=tasks,
        )
        .map_batches(EmbedWorker, fn_constructor_args=(setup,), **model_stage(compute, pool))
        .map_batches(
            last,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=WRITE_CPUS,
            compute=few,
        )
    )
    yield from stages.iter_rows()


def configure_ray_data() -> None:
    """Settings of Ray Data for datasets of fragments."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1
    context.retried_map_errors = [RETRY_MARK]
    context.max_map_retries = STORAGE_RETRIES
    context.raise_original_map_exception = True
    context.print_on_execution_start = False
    # A pool grows when each of its workers has a fragment; Ray's 1.75 is for workers that hold two
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.issue_detectors_config.detectors = []  # their advice on memory= comes every 30 s
    # Ray counts the blocks that go in; one of ours becomes as many fragments as its file has.
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks", UserWarning)


def model_stage(compute: Compute, pool: ray.data.ActorPoolStrategy) -> dict[str, Any]:
    """How a stage is mapped whose workers hold a model: one row a call, on a pool."""
    return {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "compute": pool,
        "num_cpus": EMBED_CPU_SHARE * compute.cpus_per_worker,
        "num_gpus": compute.gpus_per_worker or None,
        "memory": compute.memory_per_worker_bytes,
        "runtime_env": compute_runtime_env(),
    }


def _most_fragments(work: Sequence[Work], source: Source) -> int:
    """The most fragments that the work can have, where texts are up to ten times as long as their files."""
    return sum(1 + 10 * item.unit.size_bytes // source.max_bytes for item in work)


def actor_pool(compute: Compute, most_tasks: int | None = None) -> ray.data.ActorPoolStrategy:
    """The workers that a config asks for, or as many as the cluster has room for and there are tasks."""
    fitting = workers_that_fit(compute)
    fewest, most = compute.workers or (1, max(1, fitting))
    if most_tasks is not None and compute.workers is None:
        most = max(1, min(most, most_tasks))
    # A fragment that waits behind another is kept from workers that have none, and on a CPU it is long; one of a GPU
    # may be shorter than Ray's look for the next.
    in_flight = 2 if compute.gpus_per_worker else 1
    # All that fit now are started at once: Ray's own scaling adds them one by one, 10 s apart.
    return ray.data.ActorPoolStrategy(
        min_size=fewest,
        max_size=most,
        initial_size=max(fewest, min(most, fitting)),
        max_tasks_in_flight_per_actor=in_flight,
    )


def calibrate_scale(config: EmbedConfig, spec: EmbedderSpec, keep: pa.Schema, units: Sequence[Unit]) -> float:
    """The int8 scale of the dataset, from the vectors of a few hundred documents, embedded on one worker."""
    compute = config.compute
    task = ray.remote(num_cpus=EMBED_CPU_SHARE * compute.cpus_per_worker, num_gpus=compute.gpus_per_worker or None)(
        scale_of_sample
    )
    scale: float = ray.get(task.remote(config, spec, keep, units))
    return scale
