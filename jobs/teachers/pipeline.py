"""The pipeline of teachers' outputs on Ray Data: a dataset of pieces in, a stream of their records out.

    pieces -> read (tokenize) -> TeacherWorker (actor pool) -> write -> records on the driver

The stages' CPUs differ, so that Ray does not fuse neighbours, and are under two in all (jobs.embedding.pipeline).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import ray.data

from jobs.embedding.config import Compute
from jobs.embedding.pipeline import TOKENIZE_CPUS, WRITE_CPUS, actor_pool, configure_ray_data, model_stage
from jobs.embedding.remote_ledger import RemoteLedger
from jobs.teachers.work import Wanted
from jobs.teachers.workers import Setup, TeacherWorker, read, record_from_row, work_row, write
from operators.teachers.outputs import Piece, StoredPiece


def said_pieces(
    wanted: tuple[Wanted, ...], work: Iterable[tuple[int, Piece]], compute: Compute, cache_dir: str | None
) -> Iterator[tuple[int, StoredPiece]]:
    """Have one teacher say what it says of pieces; yields each with the number of its set when it is on storage."""
    configure_ray_data()
    setup = Setup(wanted, compute.cpus_per_worker, cache_dir, RemoteLedger())
    pool = actor_pool(compute)
    tasks = ray.data.TaskPoolStrategy(size=2 * pool.max_size if compute.gpus_per_worker else pool.max_size)
    stages = (
        ray.data.from_arrow([work_row(number, piece) for number, piece in work])
        .map_batches(
            functools.partial(read, setup=setup),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=TOKENIZE_CPUS,
            compute=tasks,
        )
        .map_batches(TeacherWorker, fn_constructor_args=(setup,), **model_stage(compute, pool))
        .map_batches(
            functools.partial(write, setup=setup),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=WRITE_CPUS,
            compute=tasks,
        )
    )
    for row in stages.iter_rows():
        yield record_from_row(row)
