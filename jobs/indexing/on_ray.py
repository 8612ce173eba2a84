"""Calls and open shards of an index job on a connected Ray."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from cluster.metrics import index_metrics
from jobs.indexing.asking import Patience, answers_of
from jobs.indexing.place import Answer, Crew, Needs, Shards
from jobs.indexing.workers import ShardWorker
from operators.index.snapshot import IndexSnapshot
from operators.storage import Location

_RETRIED: dict[str, Any] = {"max_retries": 8, "retry_exceptions": [OSError]}


class OnRay:
    """See `Place`. Storage faults (OSError) are tried again, elsewhere if need be; wrong input (InputError) is not."""

    def share(self, value: Any) -> Any:
        """On Ray's object store."""
        return ray.put(value)

    def submit(self, needs: Needs, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> Any:
        """A task."""
        options = {"num_gpus": needs.gpus or None, "memory": needs.memory or None, "num_returns": returns, **_RETRIED}
        if needs.alone:
            options["max_calls"] = 1  # its process ends with it
        return ray.remote(num_cpus=needs.cpus, **options)(function).remote(*arguments)

    def results(self, calls: Sequence[Any]) -> list[Any]:
        """Waits for all."""
        return list(ray.get(list(calls)))

    def as_finished(self, calls: Iterable[Any]) -> Iterator[Any]:
        """All run at once."""
        waiting = list(calls)
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)

    def open_shards(
        self, index: Location, snapshot: IndexSnapshot, crew: Crew, cache_dir: str | None
    ) -> AbstractContextManager[Shards]:
        """By actors."""
        return open_shards(index, snapshot, crew, cache_dir)

    def most_threads(self) -> int:
        """CPUs of the largest node, but no more than are free: a call that waits for a whole node may wait long."""
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1)
        return max(1, int(min(largest, ray.available_resources().get("CPU", 1))))

    def count_built(self, vectors: int) -> None:
        """To Prometheus."""
        index_metrics().record(vectors)


@contextmanager
def open_shards(index: Location, snapshot: IndexSnapshot, crew: Crew, cache_dir: str | None) -> Iterator[Shards]:
    """Actors that hold all shards of a snapshot open between them.

    They end with the block: a process that goes on with its Ray must get their CPUs back.
    """
    count = _size(crew, len(snapshot.shards))
    # Spread: their work is memory bandwidth and network, of which every node has its own.
    actor = ray.remote(num_cpus=crew.cpus, max_restarts=-1, max_task_retries=8, scheduling_strategy="SPREAD")(
        ShardWorker
    )
    hands: list[list[int]] = [[] for _ in range(count)]
    for number in sorted(range(len(snapshot.shards)), key=lambda n: -snapshot.shards[n].rows):
        min(hands, key=lambda hand: sum(snapshot.shards[n].rows for n in hand)).append(number)
    reference = ray.put(snapshot)
    actors = [actor.remote(index, reference, hand, cache_dir, crew.threads) for hand in hands]
    try:
        yield ShardsOnRay(tuple(actors))
    finally:
        for each in actors:
            ray.kill(each)


@dataclass(frozen=True, slots=True)
class ShardsOnRay:
    """See `Shards`; goes to other workers, which may ask as well."""

    actors: tuple[Any, ...]

    @property
    def workers(self) -> int:
        """Processes."""
        return len(self.actors)

    def share(self, value: Any) -> Any:
        """On Ray's object store."""
        return ray.put(value)

    def ask(self, question: Callable[..., Answer], *arguments: Any) -> list[Answer]:
        """All actors, at once."""
        return answers_of(self.actors, question.__name__, arguments, Patience())

    def ask_any(self, question: Callable[..., Answer], *arguments: Any) -> Answer:
        """An actor drawn at random, so that they share the work."""
        answer: Answer
        [answer] = answers_of([random.choice(self.actors)], question.__name__, arguments, Patience())
        return answer


def _size(crew: Crew, num_shards: int) -> int:
    """How many processes. By node: one that fits no node would be waited for without end."""
    nodes = sorted((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), reverse=True)
    nodes[0] -= crew.spare
    room = sum(int(node / crew.cpus) for node in nodes)
    return max(1, min(num_shards, room, crew.most or room))
