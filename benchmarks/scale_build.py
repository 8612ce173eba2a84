"""Train and build an index in simulated time. Used by benchmarks.scale.

The build is a discrete-event simulation. A node's builders share its network; each goes through the phases of
`jobs.indexing.workers.build` one after the other, as the code does (it does not read ahead). Nodes die and come back,
with an empty cache; what they were building begins anew elsewhere.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from benchmarks.scale_model import DRIFT_EVERY, HELD_OUT, ITEM_BYTES, Costs, Plan, cpu, graph_seconds

_DRAW_TASKS = 64  # jobs/indexing/pipeline.py
_SLICES = 6  # a shard's fragments are read and computed in turns; so many stand for its hundreds
_DOWN, _UP = ("stream", "get"), ("put",)


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
    moving = plan.sample_bytes / s.link_bytes + plan.sample_bytes / (costs.load_mb * 1e6)
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

    def __init__(self, plan: Plan, costs: Costs, mtbf_hours: float, seed: int) -> None:
        self._plan, self._costs, self._s = plan, costs, plan.scenario
        self._mtbf_s = mtbf_hours * 3600
        self._rng = np.random.default_rng(seed)
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
        assign = graph_seconds(costs, plan, 16) * (1 + 1 / DRIFT_EVERY)  # 16 is faiss's efSearch
        codes = (costs.pq_us if plan.is_fast else 0) + costs.refine_us
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
