"""What the calls of the index job do: draw a sample, train, build a shard, follow changes, find neighbours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.indexing.place import Place
from operators.embedder.sparse_vectors import SparseVectors
from operators.index.building import BuildSetup, ShardPlan, build_shard, finished_shard
from operators.index.building import collect_truth as collect_truth_of
from operators.index.by_list import ListShard, Scatter, Scattered, ScatteredGone, gather, scatter
from operators.index.comparing import Comparison, ShardDiff, diff_shard
from operators.index.group import Found, ShardGroup
from operators.index.held_out import split_drawn
from operators.index.library import use_threads
from operators.index.sampling import Draw, draw
from operators.index.snapshot import IndexIdentity, IndexSnapshot, Settings, ShardRecord, TrainedRecord, claim_index
from operators.index.spec import IndexSpec
from operators.index.trained import Prepared, has_trained, open_trained, store_trained, stored_trained
from operators.index.training import Training, train
from operators.index.vectors import Vectors
from operators.storage import Location
from operators.storage.cache import Cache


@dataclass(frozen=True, slots=True)
class Built:
    """A shard on storage; `seconds` is 0 where an earlier run had built it."""

    record: ShardRecord
    seconds: float


def draw_sample(draws: Sequence[Draw], setup: BuildSetup, seed: int) -> tuple[Vectors, Any]:
    """The training vectors of some fragments, and their held-out queries with ids."""
    drawn = [draw(setup.dataset, setup.identity, setup.space, plan, seed) for plan in draws]
    return split_drawn(drawn)


def train_index(
    identity: IndexIdentity,
    training: Training,
    index: Location,
    generation: int,
    threads: int,
    place: Place,
    sample: Sequence[Any],
) -> TrainedRecord:
    """Train on a sample in calls of `place`, and store the index that all shards share; one that is there counts.

    The output becomes this index's own only now: a spec that cannot be trained leaves nothing behind.
    """
    if has_trained(index, generation):
        return stored_trained(index, generation)
    spec = identity.spec
    use_threads(threads)
    parts = place.results(sample)
    width = spec.dim // 8 if spec.is_binary else spec.dim
    vectors = np.concatenate(parts) if parts else np.empty((0, width), np.uint8 if spec.is_binary else np.float32)
    del parts
    trained = train(spec, vectors, training, use_gpu=training.gpus > 0)
    claim_index(index, identity)
    return store_trained(index, generation, trained, spec)


def build(
    plan: ShardPlan, trained: TrainedRecord | None, spec: IndexSpec, setup: BuildSetup, threads: int, gpu: bool
) -> Built:
    """Build one shard, unless it is on storage already."""
    there = finished_shard(setup.index, plan.key)
    if there is not None:
        return Built(there, 0.0)
    use_threads(threads)
    started = time.perf_counter()
    opened = open_trained(setup.index, trained, spec, Cache.at(setup.cache_dir)) if trained is not None else None
    if gpu and opened is not None:
        opened.assign_on_gpu()
    record = build_shard(plan, opened, setup)
    return Built(record, time.perf_counter() - started)


def scatter_group(plan: Scatter, trained: TrainedRecord, spec: IndexSpec, setup: BuildSetup, threads: int) -> Scattered:
    """Put the vectors of some fragments into the buckets of their lists."""
    use_threads(threads)
    return scatter(plan, open_trained(setup.index, trained, spec, Cache.at(setup.cache_dir)), setup)


def gather_shard(
    plan: ListShard, trained: TrainedRecord, spec: IndexSpec, setup: BuildSetup, threads: int
) -> Built | None:
    """Build one shard by list of its buckets, unless it is on storage already; None where buckets are gone."""
    there = finished_shard(setup.index, plan.key)
    if there is not None:
        return Built(there, 0.0)
    use_threads(threads)
    started = time.perf_counter()
    try:
        record = gather(plan, open_trained(setup.index, trained, spec, Cache.at(setup.cache_dir)), setup)
    except ScatteredGone:
        return None
    return Built(record, time.perf_counter() - started)


def compare(
    index: Location, shard: ShardRecord, dataset: Location, fragments: frozenset[str], candidates: tuple[str, ...]
) -> ShardDiff:
    """What became of a shard's rows."""
    return diff_shard(index, shard, dataset, Comparison(fragments, candidates))


def collect_truth(record: ShardRecord, setup: BuildSetup, threads: int) -> None:
    """Exact neighbours in a shard that was built before there were these queries."""
    use_threads(threads)
    collect_truth_of(record, setup)


class ShardWorker:
    """A process that holds some shards open and answers for them."""

    def __init__(
        self, index: Location, snapshot: IndexSnapshot, numbers: Sequence[int], cache_dir: str | None, threads: int
    ) -> None:
        self._group = ShardGroup(index, snapshot, numbers, cache_dir, threads)

    def columns(self) -> list[str]:
        """See `ShardGroup.columns`."""
        return self._group.columns

    def select(self, filter_text: str | None) -> int:
        """See `ShardGroup.select`."""
        return self._group.select(filter_text)

    def prepare(self, queries_QD: Vectors, settings: Settings) -> tuple[Prepared, float]:
        """See `ShardGroup.prepare`; with the CPU seconds that it took."""
        started = time.process_time()
        prepared = self._group.prepare(queries_QD, settings)
        return prepared, time.process_time() - started

    def candidates(
        self, prepared: Prepared, k: int, settings: Settings, filter_text: str | None = None
    ) -> tuple[Found, float]:
        """See `ShardGroup.candidates`; with the CPU seconds that they took."""
        started = time.process_time()
        found = self._group.candidates(prepared, k, settings, filter_text)
        return found, time.process_time() - started

    def sparse_candidates(self, queries: SparseVectors, k: int, filter_text: str | None = None) -> Found:
        """See `ShardGroup.sparse_candidates`."""
        return self._group.sparse_candidates(queries, k, filter_text)

    def finest(self, prepared: Prepared, k: int, filter_text: str | None = None) -> tuple[Found, float]:
        """See `ShardGroup.finest`; with the CPU seconds that they took."""
        started = time.process_time()
        found = self._group.finest(prepared, k, filter_text)
        return found, time.process_time() - started

    def refine(self, prepared: Prepared, ids_QC: Any, k: int) -> tuple[Found, float]:
        """See `ShardGroup.refine`; with the CPU seconds that they took."""
        started = time.process_time()
        found = self._group.refine(prepared, ids_QC, k)
        return found, time.process_time() - started

    def scanned(self, prepared: Prepared, settings: Settings) -> float:
        """See `ShardGroup.scanned`."""
        return self._group.scanned(prepared, settings)

    def look_up(self, ids: Any, columns: Sequence[str]) -> Any:
        """See `ShardGroup.look_up`."""
        return self._group.look_up(ids, columns)
