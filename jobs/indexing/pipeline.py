"""The calls of the index job: they draw, train, compare and build, and measure the shards.

The driver holds records and, for the held-out queries, their neighbours; never a document's vector.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.indexing.config import IndexConfig
from jobs.indexing.open_shards import prepare, search_all
from jobs.indexing.place import Crew, Needs, Place
from jobs.indexing.workers import (
    Built,
    ShardWorker,
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
    place: Place,
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
    drawn = [
        place.submit(Needs(), draw_sample, part, setup, config.train.seed, returns=2)
        for part in _even_parts(draws, _DRAW_TASKS)
    ]
    threads, samples = config.train.cpus or place.most_threads(), [sample for sample, _ in drawn]
    needs = Needs(threads, config.train.gpus)
    training = place.submit(
        needs, train_index, identity, config.train, setup.index, generation, threads, place, samples
    )
    record: TrainedRecord
    [record] = place.results([training])
    if queries_name is not None:
        vectors_QD, ids = of_drawn(place.results([queries for _, queries in drawn]))
        store_held_out(setup.index, queries_name, vectors_QD, ids, DRAWN)
    return record


def diff_shards(
    place: Place, setup: BuildSetup, previous: IndexSnapshot, comparisons: Mapping[int, Comparison]
) -> dict[int, ShardDiff]:
    """Follow the rows of gone fragments in every shard that holds some."""
    candidates = {id(plan.candidates): plan.candidates for plan in comparisons.values()}
    shared = {address: place.share(keys) for address, keys in candidates.items()}  # once for all shards of a large file
    running = [
        place.submit(
            Needs(),
            compare,
            setup.index,
            previous.shards[number],
            setup.dataset,
            plan.fragments,
            shared[id(plan.candidates)],
        )
        for number, plan in comparisons.items()
    ]
    return dict(zip(comparisons, place.results(running), strict=True))


def build_shards(
    place: Place,
    config: IndexConfig,
    spec: IndexSpec,
    setup: BuildSetup,
    trained: TrainedRecord | None,
    plans: Sequence[ShardPlan],
) -> Iterator[Built]:
    """Build shards in parallel; yields each as soon as it is on storage."""
    shared, threads, gpus = place.share(setup), config.compute.cpus_per_builder, config.compute.gpus_per_builder

    def start(plan: ShardPlan) -> Any:
        each, fixed = builder_bytes(spec, setup, plan)
        memory = min(fixed + int(each * plan.num_rows), config.shards.memory_bytes)
        needs = Needs(threads, gpus, memory, alone=True)
        return place.submit(needs, build, plan, trained, spec, shared, threads, gpus > 0)

    for built in place.as_finished(start(plan) for plan in plans):
        place.count_built(built.record.rows if built.seconds else 0)
        yield built


def build_list_shards(
    place: Place,
    config: IndexConfig,
    spec: IndexSpec,
    setup: BuildSetup,
    trained: TrainedRecord | None,
    groups: Sequence[ShardPlan],
) -> Iterator[Built]:
    """Build shards by inverted list: scatter all groups, then gather each shard; as many shards as groups."""
    assert trained is not None, "sparse vectors alone have no lists"
    shared, threads = place.share(setup), config.compute.cpus_per_builder
    lists = num_lists(make_index(spec), spec)
    if not lists:
        raise InputError(f"set shards.by: document, or a spec with inverted lists: {spec.factory} has none")
    buckets = BUCKETS_PER_SHARD * len(groups)
    finished: set[str] = set()
    for _ in range(_SCATTERED):
        scattered = [
            place.submit(Needs(threads), scatter_group, Scatter(group, buckets), trained, spec, shared, threads)
            for group in groups
        ]
        plans = plan_list_shards(place.results(scattered), len(groups), lists, trained.sha256)
        needs, missing = Needs(threads, alone=True), [plan for plan in plans if plan.key not in finished]
        calls = (place.submit(needs, gather_shard, plan, trained, spec, shared, threads) for plan in missing)
        for built in place.as_finished(calls):
            if built is not None:
                finished.add(built.record.plan_key)
                place.count_built(built.record.rows if built.seconds else 0)
                yield built
        if len(finished) == len(plans):
            return
    raise OSError(errno.ESTALE, "run again, and not twice at once: other runs cleared up what this one had scattered")


def builder_bytes(spec: IndexSpec, setup: BuildSetup, plan: ShardPlan) -> tuple[float, int]:
    """Memory that a builder takes for each vector of its shard, and besides."""
    queries = len(setup.queries.vectors_QD) if setup.queries else 0
    records = [part.record for part in plan.parts]
    return bytes_per_row(spec, records, bool(setup.sparse_dim)), fixed_bytes(spec, 16384, queries)


def measure(
    place: Place, config: IndexConfig, setup: BuildSetup, snapshot: IndexSnapshot, live: Sequence[Any]
) -> Recall:
    """Search the held-out queries with rising effort, and keep the cheapest settings that reach the target."""
    queries = setup.queries
    assert queries is not None, "there are queries to measure with"
    truths = _complete_truths(place, config, setup, snapshot.shards, queries)
    spec = snapshot.identity.spec
    truth = merge_truth(truths, live, queries.k, spec.larger_is_better)
    own_Q = _own_ids([t.own_Q for t in truths])
    threads = config.compute.cpus_per_builder
    finer = finer_store(snapshot)
    finer = finer.by_candidates() if finer is not None else None  # settings must hold for a single query too
    with place.open_shards(setup.index, snapshot, Crew(threads, threads), config.compute.cache_dir) as shards:
        vectors = shards.share(queries.vectors_QD)

        def attempt(settings: Settings) -> Trial:
            found, seconds = search_all(
                shards, vectors, len(own_Q), queries.k + 1, settings, None, spec.larger_is_better, finer
            )
            prepared = prepare(shards, vectors, settings).shared
            scanned = sum(shards.ask(ShardWorker.scanned, prepared, settings))
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
    place: Place, config: IndexConfig, setup: BuildSetup, shards: Sequence[ShardRecord], queries: HeldOut
) -> list[Truth]:
    """The queries' exact neighbours in each shard, found where they are not kept or do not read."""
    kept = [_kept_truth(setup, shard, queries) for shard in shards]
    missing = [shard for shard, truth in zip(shards, kept, strict=True) if truth is None]
    threads = config.compute.cpus_per_builder
    place.results([place.submit(Needs(threads), collect_truth, shard, setup, threads) for shard in missing])
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
