"""Search an index in simulated time. Used by benchmarks.scale.

As jobs.searching.workers does it, a few batches in flight: one worker, any, finds the lists of a batch; all workers get
them and give candidates, which one task merges; all workers give finer scores, which it ranks. A worker answers one
call at a time; the slowest one decides.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from benchmarks.scale_model import HELD_OUT, TOP_K, Costs, Plan, cpu, graph_seconds
from operators.index.vectors import VECTORS_AT_ONCE

_IN_FLIGHT = 4  # batches of queries searched at once (jobs/searching/pipeline.py)
_ANSWERS_AT_ONCE = 1 << 20  # queries of a batch times workers (the same)
_LEAST_BATCH = 4096  # queries (the same)
_SHARE = 0.4  # of a CPU that a thread of a search worker reserves (the same)
_DECODED_AT_ONCE = 1 << 11  # candidates of a pass of `Shard.refine`, at the sizes that its costs were measured with


@dataclass(frozen=True, slots=True)
class Crew:
    """The processes that hold the shards open between them."""

    workers: int
    threads: int

    @staticmethod
    def of(plan: Plan, threads: int, cpus: float, most: int | None = None) -> Crew:
        """As many as there are shards, or room, node by node; each reserves `cpus`."""
        s = plan.scenario
        room = s.nodes * int(s.cpus / cpus)
        return Crew(max(1, min(len(plan.shards), room, most or room)), threads)

    @staticmethod
    def searching(plan: Plan) -> Crew:
        """Of a batch search over ready vectors."""
        s = plan.scenario
        cpus = s.nodes * s.cpus
        threads = min(s.search_threads, cpus)
        wanted = s.search_workers or max(1, cpus // 4)
        return Crew.of(plan, threads, _SHARE * threads, wanted)

    @staticmethod
    def measuring(plan: Plan) -> Crew:
        """Of the index job, which measures recall with the CPUs of its builders."""
        return Crew.of(plan, plan.threads, plan.threads)

    @property
    def batch(self) -> int:
        """Ready vectors searched at once: jobs.searching.pipeline takes fewer where many workers answer."""
        return min(VECTORS_AT_ONCE, max(_LEAST_BATCH, _ANSWERS_AT_ONCE // self.workers))


@dataclass(frozen=True, slots=True)
class Searched:
    """What a simulated batch search took."""

    opening_minutes: float
    queries_per_second: float
    busy: float  # share of the workers' time
    single_ms: float  # one query, shards open


class SearchSimulation:
    """A batch search by a crew."""

    def __init__(self, plan: Plan, costs: Costs, crew: Crew | None = None) -> None:
        self._plan, self._costs, self._s = plan, costs, plan.scenario
        self.crew = crew or Crew.searching(plan)
        self._workers = self.crew.workers
        self._held = math.ceil(len(plan.shards) / self._workers)  # shards of a worker that has many
        self._reached = min(self._s.nodes, self._workers)  # nodes
        share = min(float(self.crew.threads), self._s.nodes * self._s.cpus / self._workers)
        self._cores = 1 + (share - 1) * costs.threads if share > 1 else share

    @property
    def memory_per_node(self) -> float:
        """Every worker process has the trained index, and its shards' codes."""
        plan = self._plan
        processes = self._workers * (450 * 2**20 + plan.trained_bytes) + len(plan.shards) * plan.resident_bytes
        return processes / self._reached

    @property
    def cached(self) -> float:
        """Share of the refine store that fits into the memory left."""
        cold = len(self._plan.shards) / self._reached * self._plan.rows * self._plan.bytes.cold
        return min(1.0, max(0.0, 0.9 * self._s.ram - self.memory_per_node) / max(1.0, cold))

    @property
    def answers_bytes(self) -> float:
        """Candidates of all workers for the batches in flight, scores and ids: so much is received, and copied."""
        return _IN_FLIGHT * 12.0 * self._workers * self.crew.batch * self._plan.fetched

    def run(self) -> Searched:
        """Simulate the scenario's queries."""
        batches = max(_IN_FLIGHT, math.ceil(self._s.batch_queries / self.crew.batch))
        rng = np.random.default_rng(self._s.seed)
        free_W, everyone = np.zeros(self._workers), np.arange(self._workers)
        ready = [(0.0, batch, 0) for batch in range(_IN_FLIGHT)]  # when, which, at which stage
        begun, end, spent = len(ready), 0.0, 0.0
        stages = self.stages(self.crew.batch)
        while ready:
            now, batch, stage = heapq.heappop(ready)
            if stage == len(stages):
                end = max(end, now)
                if begun < batches:
                    heapq.heappush(ready, (now, begun, 0))
                    begun += 1
                continue
            asked = everyone if stage else rng.integers(self._workers, size=1)
            working, then = stages[stage]
            busy = working * rng.lognormal(0, self._costs.straggler, len(asked))
            free_W[asked] = np.maximum(free_W[asked], now) + busy
            spent += float(busy.sum())
            heapq.heappush(ready, (float(free_W[asked].max()) + then, batch, stage + 1))
        return Searched(
            opening_minutes=self.opening() / 60,
            queries_per_second=batches * self.crew.batch / end,
            busy=spent / self._workers / end,
            single_ms=self.single() * 1e3,
        )

    def stages(self, queries: int) -> tuple[tuple[float, float], ...]:
        """Seconds that lists, candidates and finer scores take a worker, and that pass then until the next stage."""
        s, plan = self._s, self._plan
        vector = 4.0 * s.dim
        prepared = queries * (vector * (2 if plan.has_transform else 1) + 12 * plan.nprobe)
        found = queries * (vector + 8 * plan.fetched)  # the vectors again, and the candidates' ids
        if not plan.bytes.cold:
            return (self.finding(queries), self.sending(prepared)), (self.candidates(queries), self.merging(queries))
        return (
            (self.finding(queries), self.sending(prepared)),
            (self.candidates(queries), self.merging(queries) + self.sending(found)),
            (self.rescoring(queries), self.ranking(queries)),
        )

    def finding(self, queries: int) -> float:
        """Seconds of one worker for the nearest lists; `Trained.prepare` keeps twice as many candidates as lists."""
        each = graph_seconds(self._costs, self._plan, max(64, 2 * self._plan.nprobe))
        return queries * each / (self._cores if queries > 1 else 1.0)

    def sending(self, size: float) -> float:
        """Seconds until an object is on all nodes with workers; its first node is counted as the only sender."""
        return (self._reached - 1) * size / self._s.link_bytes

    def candidates(self, queries: int) -> float:
        """Seconds of a worker for its candidates: its shards one after the other, then the best of them."""
        costs, plan = self._costs, self._plan
        shape = plan.lists_of_shard
        codes = plan.nprobe * shape.probed * cpu(costs, plan, costs.code_us if plan.is_fast else costs.plain_code_us)
        lists = plan.nprobe * costs.list_us * 1e-6 * costs.vcpu
        scan = (codes + lists) * costs.out_of_cache + cpu(costs, plan, costs.query_us)
        own = self._merge(queries * self._held * plan.fetched) if self._held > 1 else 0.0
        return queries * self._held * scan / (self._cores if queries > 1 else 1.0) + own

    def rescoring(self, queries: int) -> float:
        """Seconds of a worker for finer scores of its own candidates, which it looks for shard by shard among all."""
        costs, plan, kept = self._costs, self._plan, TOP_K * self._costs.k_factor
        inside: float = 1 - (1 - 1 / len(plan.shards)) ** kept  # of the queries have a candidate in a shard
        passes = math.ceil(queries * inside / max(1, _DECODED_AT_ONCE // plan.fetched)) * costs.pass_us
        looking = queries * plan.fetched * costs.look_us
        own = queries * kept / self._workers
        each = cpu(costs, plan, costs.take_us) + cpu(costs, plan, costs.decode_us) / self._cores
        reading = own * (1 - self.cached) * costs.disk_read_us * 1e-6
        return own * each + self._held * (passes + looking) * 1e-6 * costs.vcpu + reading

    def finer_share(self) -> float:
        """Share of the workers' work that is finer scores."""
        if not self._plan.bytes.cold:
            return 0.0
        finding, candidates, finer = (working for working, _ in self.stages(self.crew.batch))
        return finer / (finding / self._workers + candidates + finer)

    def merging(self, queries: int) -> float:
        """Seconds of the task that asks: answers over its node's network, put together, merged; one thread."""
        answers = queries * self._plan.fetched * self._workers
        return answers * 12 / self._s.link_bytes + self._merge(answers) + self._calls()

    def ranking(self, queries: int) -> float:
        """Seconds of the task that asks: finer scores, 4 bytes each; then the rows of the results, a third round."""
        scores, costs = queries * self._plan.fetched * self._workers, self._costs
        return scores * 4 / self._s.link_bytes + scores * costs.rank_us * 1e-6 * costs.vcpu + 2 * self._calls()

    def single(self) -> float:
        """Seconds of one query with all workers open and idle."""
        return self._costs.call_us * 1e-6 + sum(working + then for working, then in self.stages(1))

    def measuring(self) -> float:
        """Seconds to open the shards and try settings: about 4 numbers of candidates at each power of 2 of nprobe."""
        trials = 4 * (math.log2(self._plan.nprobe) + 2)
        # The lists are found once more, to count the vectors in them (Shard.scanned).
        rounds = sum(working + then for working, then in self.stages(HELD_OUT)) + self.finding(HELD_OUT) + self._calls()
        sizes = self._held * self._plan.lists * self._costs.list_size_us * 1e-6 * self._costs.vcpu
        return self.opening() + trials * (rounds + sizes)

    def opening(self) -> float:
        """Seconds until a worker holds its shards: trained index and shards fetched, hashed, loaded, ids mapped."""
        plan, costs = self._plan, self._costs
        size = plan.trained_bytes + self._held * (plan.shard_bytes + plan.ids_bytes)
        fetching = size / min(costs.get_mb * 1e6, self._s.link_bytes * self._reached / self._workers)
        hashing = size * costs.vcpu / (costs.sha256_mb * 1e6)
        loading = (plan.trained_bytes + self._held * plan.resident_bytes) / (costs.load_mb * 1e6)
        mapping = self._held * plan.rows * costs.open_ids_us * 1e-6 * costs.vcpu
        return costs.start_s + fetching + hashing + loading + mapping

    def _merge(self, answers: float) -> float:
        return answers * (self._costs.stack_us + self._costs.merge_us) * 1e-6 * self._costs.vcpu

    def _calls(self) -> float:
        return self._workers * self._costs.call_us * 1e-6
