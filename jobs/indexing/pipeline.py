"""The index job on Ray: tasks that draw, train, compare and build, and what the shards are measured with.

The driver holds records and, for the held-out queries, their neighbours; never a document's vector.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cluster.metrics import index_metrics
from jobs.indexing.config import IndexConfig
from jobs.indexing.open_shards import Crew, ask, open_shards, prepare, search_all
from jobs.indexing.workers import (
    RETRIED,
    Built,
    build,
    collect_truth,
    compare,
    draw_sample,
    gather_shard,
    scatter_group,
    train_index,
)
from operators.errors import InputError
from operators.index.building import BuildSetup, ShardPlan, truth_file
from operators.index.by_list import BUCKETS_PER_SHARD, Scatter, plan_list_shards
from operators.index.comparing import Comparison, ShardDiff
from operators.index.group import Found
from operators.index.held_out import DRAWN, of_drawn, store_held_out
from operators.index.list_costs import finer_store
from operators.index.planning import bytes_per_row, fixed_bytes
from operators.index.sampling import Draw, plan_draws
from operators.index.snapshot import (
    IndexIdentity,
    IndexSnapshot,
    Recall,
    Settings,
    ShardRecord,
    TrainedRecord,
)
from operators.index.spec import IndexSpec, make_index
from operators.index.training import num_lists, sample_size
from operators.index.truth import HeldOut, Truth, merge_truth, read_truth
from operators.index.tuning import Trial, settings_ladder, summary, tune
from operators.store.fragments import FragmentRecord

_DRAW_TASKS = 64
_SCATTERED = 3  # times at most: once, and again for each run that finishes meanwhile and clears up


def train_once(
    config: IndexConfig,
    identity: IndexIdentity,
    setup: BuildSetup,
    records: Sequence[FragmentRecord],
    generation: int,
    queries_name: str | None,
) -> TrainedRecord:
    """Draw the sample over all fragments and train; with `queries_name` held-out queries are drawn and kept too."""
    num_queries = config.recall.queries if queries_name is not None else 0
    draws = plan_draws(records, sample_size(identity.spec, config.train), num_queries, config.train.seed)
    task = ray.remote(num_cpus=1, num_returns=2, **RETRIED)(draw_sample)
    drawn = [task.remote(part, setup, config.train.seed) for part in _even_parts(draws, _DRAW_TASKS)]
    threads = config.train.cpus or _free_cpus()
    train = ray.remote(num_cpus=threads, num_gpus=config.train.gpus or None, **RETRIED)(train_index)
    record: TrainedRecord = ray.get(
        train.remote(identity, config.train, setup.index, generation, threads, [sample for sample, _ in drawn])
    )
    if queries_name is not None:
        vectors_QD, ids = of_drawn(ray.get([queries for _, queries in drawn]))
        store_held_out(setup.index, queries_name, vectors_QD, ids, DRAWN)
    return record


def diff_shards(
    setup: BuildSetup, previous: IndexSnapshot, comparisons: Mapping[int, Comparison]
) -> dict[int, ShardDiff]:
    """Follow the rows of gone fragments in every shard that holds some."""
    task = ray.remote(num_cpus=1, **RETRIED)(compare)
    candidates = {id(plan.candidates): plan.candidates for plan in comparisons.values()}
    stored = {place: ray.put(keys) for place, keys in candidates.items()}  # once for all shards of one large file
    running = {
        number: task.remote(
            setup.index, previous.shards[number], setup.dataset, plan.fragments, stored[id(plan.candidates)]
        )
        for number, plan in comparisons.items()
    }
    return {number: ray.get(reference) for number, reference in running.items()}


def build_shards(
    config: IndexConfig, spec: IndexSpec, setup: BuildSetup, trained: TrainedRecord | None, plans: Sequence[ShardPlan]
) -> Iterator[Built]:
    """Build shards in parallel; yields each as soon as it is on storage."""
    metrics = index_metrics()
    compute = config.compute
    shared = ray.put(setup)
    waiting = []
    for plan in plans:
        each, fixed = builder_bytes(spec, setup, plan)
        task = ray.remote(
            num_cpus=compute.cpus_per_builder,
            num_gpus=compute.gpus_per_builder or None,
            memory=min(fixed + int(each * plan.num_rows), config.shards.memory_bytes),
            max_calls=1,  # a process gives the memory of a finished shard back only when it ends
            **RETRIED,
        )(build)
        waiting.append(task.remote(plan, trained, spec, shared, compute.cpus_per_builder, compute.gpus_per_builder > 0))
    while waiting:
        done, waiting = ray.wait(waiting)
        for built in ray.get(done):
            metrics.record(built.record.rows if built.seconds else 0)
            yield built


def build_list_shards(
    config: IndexConfig,
    spec: IndexSpec,
    setup: BuildSetup,
    trained: TrainedRecord | None,
    groups: Sequence[ShardPlan],
) -> Iterator[Built]:
    """Build shards by inverted list: scatter all groups, then gather each shard; as many shards as groups."""
    assert trained is not None, "sparse vectors alone have no lists"
    compute, shared, threads = config.compute, ray.put(setup), config.compute.cpus_per_builder
    lists = num_lists(make_index(spec), spec)
    if not lists:
        raise InputError(f"set shards.by: document, or a spec with inverted lists: {spec.factory} has none")
    buckets = BUCKETS_PER_SHARD * len(groups)
    spread = ray.remote(num_cpus=compute.cpus_per_builder, **RETRIED)(scatter_group)
    collect = ray.remote(num_cpus=compute.cpus_per_builder, max_calls=1, **RETRIED)(gather_shard)
    finished: set[str] = set()
    for _ in range(_SCATTERED):
        scattered = [spread.remote(Scatter(group, buckets), trained, spec, shared, threads) for group in groups]
        plans = plan_list_shards(ray.get(scattered), len(groups), lists, trained.sha256)
        waiting = [collect.remote(p, trained, spec, shared, threads) for p in plans if p.key not in finished]
        while waiting:
            done, waiting = ray.wait(waiting)
            for built in ray.get(done):
                if built is not None:
                    finished.add(built.record.plan_key)
                    index_metrics().record(built.record.rows if built.seconds else 0)
                    yield built
        if len(finished) == len(plans):
            return
    raise OSError(errno.ESTALE, "run again, and not twice at once: other runs cleared up what this one had scattered")


def builder_bytes(spec: IndexSpec, setup: BuildSetup, plan: ShardPlan) -> tuple[float, int]:
    """Memory that a builder takes for each vector of its shard, and besides."""
    queries = len(setup.queries.vectors_QD) if setup.queries else 0
    records = [part.record for part in plan.parts]
    return bytes_per_row(spec, records, bool(setup.sparse_dim)), fixed_bytes(spec, 16384, queries)


def measure(config: IndexConfig, setup: BuildSetup, snapshot: IndexSnapshot, live: Sequence[Any]) -> Recall:
    """Search the held-out queries with rising effort, and keep the cheapest settings that reach the target."""
    queries = setup.queries
    assert queries is not None, "there are queries to measure with"
    truths = _complete_truths(config, setup, snapshot.shards, queries)
    spec = snapshot.identity.spec
    truth = merge_truth(truths, live, queries.k, spec.larger_is_better)
    own_Q = _own_ids([t.own_Q for t in truths])
    threads, vectors = config.compute.cpus_per_builder, ray.put(queries.vectors_QD)
    finer = finer_store(snapshot)
    finer = finer.by_candidates() if finer is not None else None  # settings must hold for a single query too
    with open_shards(setup.index, snapshot, Crew(threads, threads), config.compute.cache_dir) as workers:

        def attempt(settings: Settings) -> Trial:
            found, seconds = search_all(
                workers, vectors, len(own_Q), queries.k + 1, settings, None, spec.larger_is_better, finer
            )
            prepared = prepare(workers, vectors, settings).shared
            scanned = sum(ask(lambda: [w.scanned.remote(prepared, settings) for w in workers]))
            return Trial(without_own(found, own_Q), seconds, scanned)

        ladder = settings_ladder(spec, snapshot.num_vectors, queries.k)
        chosen, curve = tune(ladder, attempt, truth, queries.k, config.recall_target)
    return summary(queries.k, config.recall_target, queries.source, truth, chosen, curve)


def without_own(found: Found, own_Q: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The ids without the one that a query itself is, in order; one column fewer."""
    ids_QK = found.ids_QK
    is_own = (ids_QK == own_Q[:, None]) & (own_Q[:, None] >= 0)
    order = np.argsort(is_own, axis=1, kind="stable")[:, :-1]
    return np.where(np.take_along_axis(is_own, order, 1), -1, np.take_along_axis(ids_QK, order, 1))


def _own_ids(own: Sequence[np.ndarray[Any, np.dtype[np.int64]]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    whole = np.full(len(own[0]), -1, np.int64)
    for number, own_Q in enumerate(own):
        whole = np.where(own_Q >= 0, (np.int64(number) << 40) | own_Q, whole)
    return whole


def _complete_truths(
    config: IndexConfig, setup: BuildSetup, shards: Sequence[ShardRecord], queries: HeldOut
) -> list[Truth]:
    """The queries' exact neighbours in each shard, found where they are not kept or do not read."""
    kept = [_kept_truth(setup, shard, queries) for shard in shards]
    missing = [shard for shard, truth in zip(shards, kept, strict=True) if truth is None]
    task = ray.remote(num_cpus=config.compute.cpus_per_builder, **RETRIED)(collect_truth)
    ray.get([task.remote(shard, setup, config.compute.cpus_per_builder) for shard in missing])
    return [
        truth or read_truth(truth_file(setup.index, shard.key, queries))
        for shard, truth in zip(shards, kept, strict=True)
    ]


def _kept_truth(setup: BuildSetup, shard: ShardRecord, queries: HeldOut) -> Truth | None:
    try:
        return read_truth(truth_file(setup.index, shard.key, queries))
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def _even_parts(draws: Sequence[Draw], count: int) -> list[list[Draw]]:
    return [list(draws[i::count]) for i in range(min(count, len(draws)))]


def _free_cpus() -> int:
    """CPUs of the largest node, but no more than are free now: a training that waits for a whole node may wait long."""
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1)
    return max(1, int(min(largest, ray.available_resources().get("CPU", 1))))
