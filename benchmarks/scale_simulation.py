"""Train, build and search an index in simulated time: what benchmarks.scale prints as hours and queries a second.

The build is a discrete-event simulation. A node's builders share its network; each goes through the phases of
`jobs.index_workers.build` one after the other, as the code does (it does not read ahead). Nodes die and come back, with
an empty cache; what they were building begins anew elsewhere.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from benchmarks.scale_model import HELD_OUT, ITEM_BYTES, TOP_K, Costs, Plan
from operators.index.queries import ROWS_AT_ONCE

_DRAW_TASKS = 64  # jobs/index_pipeline.py
_SLICES = 6  # a shard's fragments are read and computed in turns; so many stand for its hundreds
_IN_FLIGHT = 4  # batches of queries searched at once (jobs/search_pipeline.py)
_DOWN, _UP = ("stream", "get"), ("put",)


def cpu(costs: Costs, plan: Plan, us: float) -> float:
    """CPU seconds for a vector, on this scenario's machines, of a step that grows with the components."""
    return us * 1e-6 * costs.vcpu * plan.scenario.dim / 768


def graph_seconds(costs: Costs, plan: Plan, ef: int) -> float:
    """CPU seconds to find one vector's nearest lists."""
    if not plan.has_graph:
        return 2.0 * plan.lists * plan.scenario.dim / (costs.gflops * 1e9) * costs.vcpu
    steps = costs.graph_us_per_candidate * ef + costs.graph_us_per_doubling * math.log2(plan.lists)
    return cpu(costs, plan, steps) * costs.out_of_cache


@dataclass(frozen=True, slots=True)
class Trained:
    """Hours of the steps of training."""

    sample: float
    kmeans_cpu: float
    kmeans_gpu: float
    rest: float

    def hours(self, gpus: int) -> float:
        """All of it, with or without GPUs."""
        return self.sample + (self.kmeans_gpu if gpus else self.kmeans_cpu) + self.rest


def train(plan: Plan, costs: Costs) -> Trained:
    """Draw the sample in 64 tasks, bring it to one node, cluster it, store trained.faiss."""
    s = plan.scenario
    rng = np.random.default_rng(s.seed)
    # A task reads whole row groups: of 4,096 fragments at most, all that it needs of them.
    bytes_read = plan.drawn * (ITEM_BYTES[s.dtype] * s.dim + costs.row_bytes)
    reading = bytes_read / _DRAW_TASKS / (costs.connection_mb * 1e6)
    working = plan.drawn / _DRAW_TASKS * cpu(costs, plan, costs.read_us)
    slowest = float(rng.lognormal(0, costs.straggler, _DRAW_TASKS).max())
    moving = plan.sample_bytes / s.link_bytes + 2 * plan.sample_bytes / (costs.load_mb * 1e6)
    cores = 1 + (s.cpus - 1) * costs.threads
    kmeans = plan.kmeans_flop / (costs.gflops * 1e9 / costs.vcpu * cores)
    on_gpus = plan.kmeans_flop / (max(1, s.gpus) * costs.gpu_tflops * 1e12)
    graph = plan.lists * cpu(costs, plan, costs.graph_build_us) * costs.out_of_cache / cores if plan.has_graph else 0.0
    size = plan.trained_bytes / 1e6
    # One PUT over one connection (create_exclusive), and read back for its hash (stored_trained).
    storing = size / costs.write_mb + 2 * size / costs.connection_mb + size / costs.sha256_mb
    seconds = (costs.start_s + reading + working * slowest + moving, kmeans, on_gpus, costs.start_s + graph + storing)
    return Trained(*(each / 3600 for each in seconds))


@dataclass(slots=True)
class _Task:
    rows: int
    slow: float
    phases: list[tuple[str, float]] = field(default_factory=list)  # kind, seconds or bytes
    left: float = 0.0
    rate: float = 1.0


@dataclass(slots=True)
class _Node:
    tasks: list[_Task] = field(default_factory=list)
    clock: float = 0.0
    version: int = 0  # of its next event; older events of it are void
    has_trained: bool = False  # the cache is per node
    is_up: bool = True


@dataclass(frozen=True, slots=True)
class Built:
    """What a simulated build took."""

    hours: float
    computing: float  # share of the builders' time
    waiting: float  # for one's own connection to storage
    link: float  # share of the cluster's download bandwidth that was used
    deaths: int
    lost: int  # shards begun anew


class BuildSimulation:
    """Builds all shards of a plan; `mtbf_hours` of a node, or infinity."""

    def __init__(self, plan: Plan, costs: Costs, mtbf_hours: float) -> None:
        self._plan, self._costs, self._s = plan, costs, plan.scenario
        self._mtbf_s = mtbf_hours * 3600
        self._rng = np.random.default_rng(self._s.seed)
        slow = self._rng.lognormal(0, costs.straggler, len(plan.shards))
        self._waiting = deque(_Task(rows, float(x)) for rows, x in zip(plan.shards, slow, strict=True))
        self._nodes = [_Node() for _ in range(self._s.nodes)]
        self._events: list[tuple[float, int, str, int, int]] = []
        self._order = itertools.count()
        self._spent = {"cpu": 0.0, "stream": 0.0, "get": 0.0, "put": 0.0}
        self._down = 0.0
        self._caps = {"stream": costs.connection_mb * 1e6, "get": costs.get_mb * 1e6, "put": costs.put_mb * 1e6}
        self._deaths = self._lost = 0
        self._cpu_per_row = self._cpu_of_row()

    def run(self) -> Built:
        """Simulate until the last shard is on storage."""
        left, now = len(self._waiting), 0.0
        for number in range(len(self._nodes)):
            self._schedule_death(number, 0.0)
            self._fill(number, 0.0)
        while left:
            now, _, kind, number, version = heapq.heappop(self._events)
            node = self._nodes[number]
            if kind == "death":
                self._die(number, now)
            elif kind == "back":
                node.is_up, node.has_trained = True, False
                self._fill(number, now)
            elif kind == "again":
                for other in range(len(self._nodes)):
                    self._fill(other, now)
            elif version == node.version:
                left -= self._step(number, now)
        total = sum(self._spent.values())
        waiting = sum(self._spent[kind] for kind in (*_DOWN, *_UP)) / total
        link = self._down / (now * len(self._nodes) * self._s.link_bytes)
        return Built(now / 3600, self._spent["cpu"] / total, waiting, link, self._deaths, self._lost)

    def _cpu_of_row(self) -> float:
        """Seconds of a builder with the plan's threads: reading is one thread's work, the rest is shared."""
        costs, plan = self._costs, self._plan
        alone = cpu(costs, plan, costs.read_us) + costs.ids_us * 1e-6 * costs.vcpu
        assign = graph_seconds(costs, plan, 16) * 17 / 16  # faiss's efSearch; every 16th vector again, for drift
        codes = costs.pq_us * plan.is_fast + costs.refine_us * (plan.bytes.cold > 0)
        shared = assign + cpu(costs, plan, codes + costs.truth_us * HELD_OUT / 1000)
        return alone + shared / (1 + (plan.threads - 1) * costs.threads)

    def _phases(self, task: _Task, node: _Node) -> list[tuple[str, float]]:
        """The steps of a builder, last first."""
        plan, costs = self._plan, self._costs
        trained, share = plan.trained_bytes, task.rows / plan.rows
        out = (plan.shard_bytes + plan.ids_bytes) * share
        hashing = costs.vcpu / (costs.sha256_mb * 1e6)
        steps = [("cpu", costs.start_s)]
        if not node.has_trained:  # builders that begin together all fetch it (operators.storage.cache)
            steps.append(("get", trained))
        steps.append(("cpu", trained * (hashing + 1 / (costs.load_mb * 1e6))))
        read = task.rows * (ITEM_BYTES[self._s.dtype] * self._s.dim + costs.row_bytes)
        work = task.rows * self._cpu_per_row * task.slow
        steps += [("stream", read / _SLICES), ("cpu", work / _SLICES)] * _SLICES
        steps += [("cpu", out * (hashing + 1 / (costs.write_mb * 1e6))), ("put", out)]
        steps += [("stream", out), ("cpu", out * hashing)]  # read back
        return steps[::-1]

    def _fill(self, number: int, now: float) -> None:
        """Give a node's free slots the next shards."""
        node = self._nodes[number]
        self._advance(node, now)
        while node.is_up and self._waiting and len(node.tasks) < self._plan.slots:
            task = self._waiting.popleft()
            task.phases = self._phases(task, node)
            task.left = task.phases[-1][1]
            node.tasks.append(task)
        self._plan_next(number, now)

    def _step(self, number: int, now: float) -> int:
        """The phase that ends now; returns how many shards are done with it."""
        node, done = self._nodes[number], 0
        self._advance(node, now)
        for task in list(node.tasks):
            if task.left > 1e-6 * max(1.0, task.rate):
                continue
            kind, _ = task.phases.pop()
            node.has_trained |= kind == "get"
            if task.phases:
                task.left = task.phases[-1][1]
            else:
                node.tasks.remove(task)
                done += 1
        self._fill(number, now)
        return done

    def _advance(self, node: _Node, now: float) -> None:
        """Let a node's tasks work until now."""
        for task in node.tasks:
            kind = task.phases[-1][0]
            task.left -= task.rate * (now - node.clock)
            self._spent[kind] += now - node.clock
            self._down += task.rate * (now - node.clock) * (kind in _DOWN)
        node.clock = now

    def _plan_next(self, number: int, now: float) -> None:
        """Share the node's network, and note when its next phase ends."""
        node = self._nodes[number]
        node.version += 1
        kinds = [task.phases[-1][0] for task in node.tasks]
        down, up = sum(kind in _DOWN for kind in kinds), sum(kind in _UP for kind in kinds)
        for task, kind in zip(node.tasks, kinds, strict=True):
            users = down if kind in _DOWN else up
            task.rate = 1.0 if kind == "cpu" else min(self._caps[kind], self._s.link_bytes / users)
        if node.tasks:
            ends = now + min(max(0.0, task.left) / task.rate for task in node.tasks)
            self._push(ends, "step", number, node.version)

    def _die(self, number: int, now: float) -> None:
        node = self._nodes[number]
        self._advance(node, now)
        self._deaths, self._lost = self._deaths + 1, self._lost + len(node.tasks)
        self._waiting.extendleft(node.tasks)
        node.tasks, node.is_up, node.version = [], False, node.version + 1
        self._push(now + self._costs.recover_s, "again", number)
        self._push(now + self._costs.node_back_s, "back", number)
        self._schedule_death(number, now + self._costs.node_back_s)

    def _schedule_death(self, number: int, now: float) -> None:
        if math.isfinite(self._mtbf_s):
            self._push(now + float(self._rng.exponential(self._mtbf_s)), "death", number)

    def _push(self, at: float, kind: str, number: int, version: int = 0) -> None:
        heapq.heappush(self._events, (at, next(self._order), kind, number, version))


@dataclass(frozen=True, slots=True)
class Searched:
    """What a simulated batch search took."""

    opening_minutes: float
    queries_per_second: float
    batch_seconds: float  # of one batch of 8,192, with others in flight
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
        ready = [(0.0, batch, 0, 0.0) for batch in range(min(_IN_FLIGHT, batches))]
        begun, end, spans = len(ready), 0.0, []
        stages = (self.candidates(ROWS_AT_ONCE), self.rescoring(ROWS_AT_ONCE))
        while ready:
            now, batch, stage, since = heapq.heappop(ready)
            if stage == 2:
                spans.append(now - since)
                end = max(end, now)
                if begun < batches:
                    heapq.heappush(ready, (now, begun, 0, now))
                    begun += 1
                continue
            busy_W = stages[stage] * rng.lognormal(0, self._costs.straggler, self._workers)
            free_W = np.maximum(free_W, now) + busy_W
            heapq.heappush(ready, (float(free_W.max()) + self.gather(stage), batch, stage + 1, since))
        rate = batches * ROWS_AT_ONCE / end
        coarse, whole = self.coarse(), self.coarse() + self._held * self.scan()
        return Searched(
            self.opening() / 60, rate, float(np.median(spans)), self.single() * 1e3, coarse / whole, self._cached
        )

    def coarse(self) -> float:
        """CPU seconds to find one query's lists; `Trained.prepare` keeps twice as many candidates as lists."""
        return graph_seconds(self._costs, self._plan, max(64, 2 * self._plan.nprobe))

    def scan(self) -> float:
        """CPU seconds of one query in one shard."""
        costs, plan = self._costs, self._plan
        shape = plan.lists_of_shard
        codes = plan.nprobe * shape.probed * cpu(costs, plan, costs.code_us)
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
