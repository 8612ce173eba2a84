"""The embed pipeline on Ray Data: a dataset of units in, a stream of fragment records out.

    units -> read -> tokenize -> embed (actor pool) -> write -> records on the driver

One row of the dataset is one unit before `read` and one fragment after it (operators.fragment.to_row), so Ray places,
retries, streams and backpressures whole fragments; the driver sees their records alone. `target_max_block_size = 1`
makes every fragment a block of its own. Every stage asks for another number of CPUs, because Ray fuses equal
neighbours into one; together they ask for less than two CPUs, so a two-CPU cluster runs all of them at once.
Ray restarts dead workers' tasks without limit: `operators.guard` is what bounds it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.metrics import embed_metrics
from jobs.config import Compute, EmbedConfig
from operators.corpus.reading import empty_rows, read_fragments, read_sample
from operators.embedder import quantization
from operators.embedder.engine import Embedder
from operators.embedder.recipe import EmbedderSpec
from operators.embedder.tokenizing import Tokenizer
from operators.errors import InputError
from operators.fragment import (
    REJECTED_SCHEMA,
    Counts,
    Fragment,
    FragmentBatch,
    Unit,
    from_row,
    to_row,
    unit_from_dict,
)
from operators.guard import PATIENCE, Attempt, AttemptLedger
from operators.stages import embed_fragment, tokenize_fragment, unreadable_unit
from operators.storage import Location, exists
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord, data_file, read_record, record_from_dict, write_fragment

logger = logging.getLogger(__name__)

READ_CPUS, TOKENIZE_CPUS, WRITE_CPUS = 0.1, 0.25, 0.11
# A worker's threads are busy with the model nearly all the time; the rest of its CPU is what the other stages live on.
EMBED_CPU_SHARE = 0.75
STORAGE_RETRIES = 4
CALIBRATION_UNITS, CALIBRATION_ROWS_PER_UNIT = 16, 64
_RETRY_MARK = "storage fault, tried again:"  # Ray looks for it in the text of an exception, also as a regex


@dataclass(frozen=True, slots=True)
class Work:
    """A unit with what must not be done again and which of its rows are duplicates (places in the unit)."""

    unit: Unit
    skip_parts: tuple[int, ...] = ()
    duplicate_positions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Setup:
    """What every stage is told; travels to the workers once per task."""

    config: EmbedConfig
    spec: EmbedderSpec
    identity: Identity
    dataset: Location
    ledger: RemoteLedger


class RemoteLedger:
    """An `AttemptLedger` in a process of its own that outlives the workers."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(AttemptLedger)
        self._actor: Any = actor.remote()

    def begin(self, key: str, num_rows: int) -> Attempt:
        """See `AttemptLedger.begin`."""
        attempt: Attempt = ray.get(self._actor.begin.remote(key, num_rows))
        return attempt

    def mark(self, key: str, start: int, end: int) -> None:
        """See `AttemptLedger.mark`; returns when it is entered, since the process may die right after."""
        ray.get(self._actor.mark.remote(key, start, end))

    def end(self, key: str) -> None:
        """See `AttemptLedger.end`."""
        ray.get(self._actor.end.remote(key))

    def deaths(self) -> int:
        """Processes that died so far."""
        return int(ray.get(self._actor.deaths.remote()))


def embed_units(work: Iterable[Work], setup: Setup) -> Iterator[tuple[FragmentRecord, Counts]]:
    """Run the pipeline; yields the record and counts of each fragment as soon as it is on storage."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1
    context.retried_map_errors = [_RETRY_MARK]
    context.max_map_retries = STORAGE_RETRIES
    context.raise_original_map_exception = True
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []  # their advice on memory= comes every 30 s
    compute = setup.config.compute
    pool = _pool(compute)
    # So few CPUs a task would let Ray start dozens of processes on each node; a GPU eats what two tokenizers make.
    tasks = ray.data.TaskPoolStrategy(size=2 * pool.max_size if compute.gpus_per_worker else pool.max_size)
    few = ray.data.TaskPoolStrategy(size=max(1, tasks.size // 2))
    units = ray.data.from_arrow([_work_to_row(item) for item in work])
    read = functools.partial(_read, setup=setup)
    tokenize = functools.partial(_tokenize, setup=setup)
    write = functools.partial(_write, setup=setup)
    stages = (
        units.map_batches(read, batch_size=None, batch_format="pyarrow", num_cpus=READ_CPUS, compute=few)
        .map_batches(tokenize, batch_size=1, batch_format="pyarrow", num_cpus=TOKENIZE_CPUS, compute=tasks)
        .map_batches(
            EmbedWorker,
            fn_constructor_args=(setup,),
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=EMBED_CPU_SHARE * compute.cpus_per_worker,
            num_gpus=compute.gpus_per_worker or None,
            memory=compute.memory_per_worker_bytes,
        )
        .map_batches(write, batch_size=1, batch_format="pyarrow", num_cpus=WRITE_CPUS, compute=few)
    )
    metrics = embed_metrics("embed")
    for row in stages.iter_rows():
        record, counts = _record_from_row(row)
        metrics.record(counts)
        yield record, counts


def _pool(compute: Compute) -> ray.data.ActorPoolStrategy:
    resources = ray.cluster_resources()
    if compute.gpus_per_worker:
        fitting = int(resources.get("GPU", 0) / compute.gpus_per_worker)
    else:
        fitting = int(resources.get("CPU", 1) / compute.cpus_per_worker)
    fewest, most = compute.workers or (1, max(1, fitting))
    # All that fit now are started at once: Ray's own scaling adds them one by one, 10 s apart.
    return ray.data.ActorPoolStrategy(
        min_size=fewest, max_size=most, initial_size=max(fewest, min(most, fitting)), max_tasks_in_flight_per_actor=2
    )


def _read(block: pa.Table, setup: Setup) -> Iterator[pa.Table]:
    for row in block.to_pylist():
        work = _work_from_row(row)
        fragments = _fragments_to_do(work, setup)
        for step in itertools.count():
            key = f"read:{work.unit.digest}:{step}"
            attempt = setup.ledger.begin(key, 1)
            try:
                if attempt.deaths > PATIENCE:
                    yield to_row(_unreadable(work, step, attempt, setup.identity))
                    break
                batch = next(fragments, None)
            except OSError as error:
                raise _retried(error) from error
            finally:
                setup.ledger.end(key)
            if batch is None:
                break
            yield to_row(batch)


def _fragments_to_do(work: Work, setup: Setup) -> Iterator[FragmentBatch]:
    positions = np.array(work.duplicate_positions, np.int64)
    keep = setup.identity.keep
    for batch in read_fragments(work.unit, setup.config.source, keep, work.skip_parts, positions):
        # Another run of the same job may have written it meanwhile: the work is shared, not done twice. It still
        # travels on, since Ray counts what a generator yields and expects the same from a second try.
        if exists(data_file(setup.dataset, batch.fragment.key)):
            batch = dataclasses.replace(batch, table=batch.table.slice(0, 0), is_written=True)
        yield batch


def _unreadable(work: Work, step: int, attempt: Attempt, identity: Identity) -> FragmentBatch:
    """The last fragment of a unit whose reading kills its process after `step` fragments."""
    parts = (part for part in itertools.count() if part not in work.skip_parts)
    fragment = Fragment(work.unit, next(itertools.islice(parts, step, None)), last=True)
    rows, rejected = empty_rows(identity.keep), REJECTED_SCHEMA.empty_table()
    return unreadable_unit(FragmentBatch(fragment, rows, rejected, Counts()), attempt.deaths)


def _tokenize(block: pa.Table, setup: Setup) -> pa.Table:
    batch = from_row(block)
    if batch.is_written:
        return block
    return to_row(tokenize_fragment(batch, setup.config.chunking, _tokenizer(setup.spec), setup.ledger))


_tokenizers: dict[str, Tokenizer] = {}


def _tokenizer(spec: EmbedderSpec) -> Tokenizer:
    # A tokenizer takes a second to load and a worker process serves many fragments; one run has one spec.
    if spec.fingerprint not in _tokenizers:
        _tokenizers.clear()
        _tokenizers[spec.fingerprint] = Tokenizer(spec)
    return _tokenizers[spec.fingerprint]


class EmbedWorker:
    """One embedding process: the model is loaded and tested once, then fragments pass through it."""

    def __init__(self, setup: Setup) -> None:
        embedder = setup.config.embedder
        self._setup = setup
        self._embedder = Embedder(
            setup.spec,
            batch_tokens=embedder.batch_tokens,
            device=embedder.device,
            threads=setup.config.compute.cpus_per_worker,
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        batch = from_row(block)
        if batch.is_written:
            return block
        return to_row(embed_fragment(batch, self._embedder, self._setup.identity, self._setup.ledger))


def _write(block: pa.Table, setup: Setup) -> pa.Table:
    batch = from_row(block)
    started = time.perf_counter()
    try:
        if batch.is_written:
            record = read_record(data_file(setup.dataset, batch.fragment.key))
            batch = dataclasses.replace(batch, counts=Counts())
        else:
            record = write_fragment(setup.dataset, setup.identity, batch)
    except OSError as error:
        raise _retried(error) from error
    counts = batch.spent("write", time.perf_counter() - started).counts
    return pa.table(
        {
            "fragment": [json.dumps(dataclasses.asdict(record))],
            "counts": [json.dumps(dataclasses.asdict(counts))],
        }
    )


def _retried(error: OSError) -> OSError:
    return OSError(error.errno, f"{_RETRY_MARK} {error}")


def _record_from_row(row: dict[str, str]) -> tuple[FragmentRecord, Counts]:
    counts = json.loads(row["counts"])
    return record_from_dict(json.loads(row["fragment"])), Counts(**{**counts, "lengths": tuple(counts["lengths"])})


def _work_to_row(work: Work) -> pa.Table:
    return pa.table({"work": [json.dumps(dataclasses.asdict(work))]})


def _work_from_row(row: dict[str, str]) -> Work:
    work = json.loads(row["work"])
    return Work(unit_from_dict(work["unit"]), tuple(work["skip_parts"]), tuple(work["duplicate_positions"]))


def calibrate_scale(config: EmbedConfig, spec: EmbedderSpec, keep: pa.Schema, units: Sequence[Unit]) -> float:
    """The int8 scale of the dataset, from the vectors of a few hundred documents, embedded on one worker."""
    compute = config.compute
    task = ray.remote(num_cpus=EMBED_CPU_SHARE * compute.cpus_per_worker, num_gpus=compute.gpus_per_worker or None)(
        _calibrate_scale
    )
    scale: float = ray.get(task.remote(config, spec, keep, units))
    return scale


def _calibrate_scale(config: EmbedConfig, spec: EmbedderSpec, keep: pa.Schema, units: Sequence[Unit]) -> float:
    step = max(1, len(units) // CALIBRATION_UNITS)
    tokenizer = Tokenizer(spec)
    embedder = Embedder(spec, device=config.embedder.device, threads=config.compute.cpus_per_worker)
    vectors = []
    for unit in units[::step][:CALIBRATION_UNITS]:
        rows = read_sample(unit, config.source, keep, CALIBRATION_ROWS_PER_UNIT)[0].table
        if rows.num_rows:
            result = embedder(tokenizer(rows["text"].combine_chunks()).input_ids)
            vectors.append(result.values_ND[result.finite_N])
    if not vectors:
        raise InputError("check source.text: no document of the sampled files has a text to calibrate int8 with")
    return quantization.calibrate_scale(np.concatenate(vectors))
