"""The shards of an index, held open by workers on Ray, and the questions that searches and measurements ask of them.

Nothing here holds a vector of a document: queries go out, and ids with scores come back.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from jobs.indexing.workers import ShardWorker
from operators.index.group import Found, cut_after_ties, merge, merge_sparse, rank, with_ties
from operators.index.snapshot import IndexSnapshot, Settings
from operators.storage import Location

logger = logging.getLogger(__name__)

_ASKED, _ANSWER_SECONDS = 5, 300.0


@dataclass(frozen=True, slots=True)
class Crew:
    """What processes that hold shards open take of a cluster."""

    threads: int  # of each
    cpus: float  # that each reserves
    most: int | None = None  # processes; None: as many as there are shards, or room
    spare: float = 0.0  # CPUs of one node that are left to what runs beside them

    def size(self, num_shards: int) -> int:
        """How many processes. By node: one that fits no node would be waited for without end."""
        nodes = sorted((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), reverse=True)
        nodes[0] -= self.spare
        room = sum(int(node / self.cpus) for node in nodes)
        return max(1, min(num_shards, room, self.most or room))


@contextmanager
def open_shards(index: Location, snapshot: IndexSnapshot, crew: Crew, cache_dir: str | None) -> Iterator[list[Any]]:
    """Workers that hold all shards of a snapshot open between them.

    They end with the block: a process that goes on with its Ray must get their CPUs back.
    """
    count = crew.size(len(snapshot.shards))
    # Spread: their work is memory bandwidth and network, of which every node has its own.
    actor = ray.remote(num_cpus=crew.cpus, max_restarts=-1, max_task_retries=8, scheduling_strategy="SPREAD")(
        ShardWorker
    )
    hands: list[list[int]] = [[] for _ in range(count)]
    for number in sorted(range(len(snapshot.shards)), key=lambda n: -snapshot.shards[n].rows):
        min(hands, key=lambda hand: sum(snapshot.shards[n].rows for n in hand)).append(number)
    reference = ray.put(snapshot)
    workers = [actor.remote(index, reference, hand, cache_dir, crew.threads) for hand in hands]
    try:
        yield workers
    finally:
        for worker in workers:
            ray.kill(worker)


def search_sparse(workers: Sequence[Any], queries: Any, num_queries: int, k: int, filter_text: str | None) -> Found:
    """Scatter sparse queries (a reference to `SparseVectors`) to all shards and gather their k best."""
    return merge_sparse(
        ask(lambda: [w.sparse_candidates.remote(queries, k, filter_text) for w in workers]), k, num_queries
    )


def search_all(
    workers: Sequence[Any],
    vectors: Any,
    num_queries: int,
    k: int,
    settings: Settings,
    filter_text: str | None,
    largest: bool,
    has_refine: bool,
) -> tuple[Found, float]:
    """Scatter queries to all shards and gather their k best, with the CPU seconds of all workers."""
    wanted = k * settings.k_factor
    fetched = with_ties(wanted) if has_refine else k
    prepared, finding = prepare(workers, vectors, settings)
    answers = ask(lambda: [w.candidates.remote(prepared, fetched, settings, filter_text) for w in workers])
    found = merge([part for part, _ in answers], fetched, largest, num_queries)
    seconds = finding + sum(spent for _, spent in answers)
    if not has_refine:
        return found, seconds
    found = cut_after_ties(found, wanted, largest)
    ids = ray.put(found.ids_QK)
    finer = ask(lambda: [w.rescore.remote(vectors, ids) for w in workers])
    return rank(found, [scores for scores, _ in finer], k, largest), seconds + sum(spent for _, spent in finer)


def prepare(workers: Sequence[Any], vectors: Any, settings: Settings) -> tuple[Any, float]:
    """Queries with their nearest lists, found by one worker for all (any, so that they share it), and its CPU seconds.

    They come back here and go out from here: what lies on another node is lost with it.
    """
    [(prepared, seconds)] = ask(lambda: [random.choice(workers).prepare.remote(vectors, settings)])
    return ray.put(prepared), seconds


def ask(calls: Callable[[], list[Any]]) -> list[Any]:
    """The answers to some calls of workers; all are made again where one does not come.

    Ray 2.60 restarts a worker whose node died and repeats its calls, but an answer that got lost with the node just
    when it was ready is now and then awaited for ever.
    """
    for _ in range(_ASKED):
        try:
            return list(ray.get(calls(), timeout=_ANSWER_SECONDS))
        except (ray.exceptions.GetTimeoutError, ray.exceptions.ObjectLostError) as error:
            logger.warning("asking the workers again: %s", type(error).__name__)
    return list(ray.get(calls()))
