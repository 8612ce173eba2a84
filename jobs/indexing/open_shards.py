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
from operators.index.group import Found, as_given, cut_after_ties, merge, merge_sparse, with_ties
from operators.index.list_costs import FinerStore
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
    finer: FinerStore | None,
) -> tuple[Found, float]:
    """Scatter queries to all shards and gather their k best, with the CPU seconds of all workers."""
    queries = prepare(workers, vectors, settings)
    seconds = queries.seconds

    def gathered(answers: list[tuple[Found, float]], wanted: int) -> Found:
        nonlocal seconds
        seconds += sum(spent for _, spent in answers)
        return merge([part for part, _ in answers], wanted, largest, num_queries)

    shared, wanted = queries.shared, k * settings.k_factor
    fetched = with_ties(wanted) if finer is not None else k
    if finer is not None and finer.compares_all(num_queries, fetched, settings):
        found = gathered(ask(lambda: [w.finest.remote(shared, k, filter_text) for w in workers]), k)
        return as_given(found, queries.places_Q), seconds
    answers = ask(lambda: [w.candidates.remote(shared, fetched, settings, filter_text) for w in workers])
    found = gathered(answers, fetched)
    if finer is not None:
        ids = ray.put(cut_after_ties(found, wanted, largest).ids_QK)
        found = gathered(ask(lambda: [w.refine.remote(shared, ids, k) for w in workers]), k)
    return as_given(found, queries.places_Q), seconds


@dataclass(frozen=True, slots=True)
class SharedQueries:
    """Queries with their nearest lists, on Ray's object store."""

    shared: Any  # a reference to `Prepared`
    places_Q: Any
    seconds: float  # CPU time that finding the lists took


def prepare(workers: Sequence[Any], vectors: Any, settings: Settings) -> SharedQueries:
    """Queries with their nearest lists, found by one worker for all (any, so that they share it).

    They come back here and go out from here: what lies on another node is lost with it.
    """
    [(prepared, seconds)] = ask(lambda: [random.choice(workers).prepare.remote(vectors, settings)])
    return SharedQueries(ray.put(prepared), prepared.places_Q, seconds)


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
