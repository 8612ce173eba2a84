"""Search an index in simulated time. Used by benchmarks.scale.

As jobs.search_workers does it: a few batches in flight, each asks every worker for candidates, merges them, and asks
every worker for finer scores. A worker answers one call at a time; the slowest one decides.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from benchmarks.scale_model import HELD_OUT, TOP_K, Costs, Plan, cpu, graph_seconds
from operators.index.queries import ROWS_AT_ONCE

_IN_FLIGHT = 4  # batches of queries searched at once (jobs/search_pipeline.py)


@dataclass(frozen=True, slots=True)
class Searched:
    """What a simulated batch search took."""

    opening_minutes: float
    measuring_minutes: float  # of recall, by the index job: shards opened, settings tried
    queries_per_second: float
    single_ms: float  # one query, shards open
    coarse: float  # share of the workers' CPU that goes into finding the nearest lists, again in every worker
    cached: float  # share of the refine store that fits into the memory left


class SearchSimulation:
    """A batch search: every batch asks every worker twice (candidates, finer scores), workers answer one at a time."""

    def __init__(self, plan: Plan, costs: Costs) -> None:
        self._plan, self._costs, self._s = plan, costs, plan.scenario
        self._workers = plan.searchers
        self._held = len(plan.shards) / self._workers  # shards of a worker
        per_node = len(plan.shards) / min(self._s.nodes, self._workers)
        cold = per_node * plan.rows * plan.bytes.cold
        self._cached = min(1.0, max(0.0, 0.9 * self._s.ram - plan.search_bytes_per_node) / max(1.0, cold))

    def run(self) -> Searched:
        """Simulate the scenario's queries."""
        batches = max(_IN_FLIGHT, math.ceil(self._s.batch_queries / ROWS_AT_ONCE))
        rng = np.random.default_rng(self._s.seed)
        free_W = np.zeros(self._workers)
        ready = [(0.0, batch, 0) for batch in range(_IN_FLIGHT)]  # when, which, at which stage
        begun, end = len(ready), 0.0
        stages = (self.candidates(ROWS_AT_ONCE), self.rescoring(ROWS_AT_ONCE))
        while ready:
            now, batch, stage = heapq.heappop(ready)
            if stage == 2:
                end = max(end, now)
                if begun < batches:
                    heapq.heappush(ready, (now, begun, 0))
                    begun += 1
                continue
            busy_W = stages[stage] * rng.lognormal(0, self._costs.straggler, self._workers)
            free_W = np.maximum(free_W, now) + busy_W
            heapq.heappush(ready, (float(free_W.max()) + self.gather(stage), batch, stage + 1))
        rate = batches * ROWS_AT_ONCE / end
        return Searched(
            opening_minutes=self.opening() / 60,
            measuring_minutes=self.measuring() / 60,
            queries_per_second=rate,
            single_ms=self.single() * 1e3,
            coarse=self.coarse_share(),
            cached=self._cached,
        )

    def coarse(self) -> float:
        """CPU seconds to find one query's lists; `Trained.prepare` keeps twice as many candidates as lists."""
        return graph_seconds(self._costs, self._plan, max(64, 2 * self._plan.nprobe))

    def coarse_share(self) -> float:
        """Share of a worker's CPU that finds lists, which every worker does anew for the same queries."""
        return self.coarse() / (self.coarse() + self._held * self.scan())

    def scan(self) -> float:
        """CPU seconds of one query in one shard."""
        costs, plan = self._costs, self._plan
        shape = plan.lists_of_shard
        codes = plan.nprobe * shape.probed * cpu(costs, plan, costs.code_us if plan.is_fast else costs.plain_code_us)
        lists = plan.nprobe * costs.list_us * 1e-6 * costs.vcpu
        return (codes + lists) * costs.out_of_cache + cpu(costs, plan, costs.query_us)

    def candidates(self, queries: int) -> float:
        """Seconds of a worker with four threads (fewer where the machine has fewer) for its candidates."""
        cores = 1 + (min(4.0, self._s.nodes * self._s.cpus / self._workers) - 1) * self._costs.threads
        return queries * (self.coarse() + self._held * self.scan()) / (cores if queries > 1 else 1.0)

    def rescoring(self, queries: int) -> float:
        """Seconds of a worker for finer scores: one thread, a page of the mapped store at a time."""
        if not self._plan.bytes.cold:
            return 0.0
        mine = queries * TOP_K * self._costs.k_factor / self._workers
        looking = queries * self._plan.fetched * self._held * 4e-9 * self._costs.vcpu  # a few passes of numpy a shard
        return mine * (1 - self._cached) * self._costs.disk_read_us * 1e-6 + mine * 2e-6 + looking

    def gather(self, stage: int) -> float:
        """Seconds of the task that asks: answers over its node's network, and the merge, one thread."""
        size, costs = ROWS_AT_ONCE * self._plan.fetched * self._workers, self._costs
        calls = self._workers * costs.call_us * 1e-6
        if stage:  # finer scores, 4 bytes; then the rows of the results, a third round
            return size * 4 / self._s.link_bytes + size * 1e-9 * costs.vcpu + 2 * calls
        return size * 12 / self._s.link_bytes + size * costs.merge_us * 1e-6 * costs.vcpu + calls

    def single(self) -> float:
        """Seconds of one query with all workers open and idle: three rounds of calls."""
        return 3 * self._workers * self._costs.call_us * 1e-6 + self.candidates(1) + self.rescoring(1)

    def measuring(self) -> float:
        """Seconds to open the shards and try settings: about 4 numbers of candidates at each power of 2 of nprobe."""
        trials = 4 * (math.log2(self._plan.nprobe) + 2)
        rounds = self.candidates(HELD_OUT) + self.rescoring(HELD_OUT) + 4 * self._workers * self._costs.call_us * 1e-6
        sizes = self._held * self._plan.lists * self._costs.list_size_us * 1e-6 * self._costs.vcpu  # Shard.scanned
        return self.opening() + trials * (rounds + sizes)

    def opening(self) -> float:
        """Seconds until a worker holds its shards: trained index and shards fetched, hashed, loaded, ids mapped."""
        plan, costs = self._plan, self._costs
        per_node = self._workers / min(self._s.nodes, self._workers)
        size = plan.trained_bytes + self._held * (plan.shard_bytes + plan.ids_bytes)
        fetching = size / min(costs.get_mb * 1e6, self._s.link_bytes / per_node)
        hashing = size * costs.vcpu / (costs.sha256_mb * 1e6)
        loading = (plan.trained_bytes + self._held * plan.resident_bytes) / (costs.load_mb * 1e6)
        mapping = self._held * plan.rows * costs.open_ids_us * 1e-6 * costs.vcpu
        return costs.start_s + fetching + hashing + loading + mapping
