"""Calls and open shards of an index job in this process, for an index that is built sooner than a Ray starts.

What dies with this process is built again by the next run, as on Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.environment import expected_cpus
from jobs.indexing.place import Answer, Crew, Needs, Shards
from jobs.indexing.workers import ShardWorker
from operators.index.snapshot import IndexSnapshot
from operators.storage import Location


class InProcess:
    """See `Place`; a call has ended when it was submitted."""

    def __init__(self, local_cpus: int | None) -> None:
        self._threads = expected_cpus(local_cpus) or 1

    def share(self, value: Any) -> Any:
        """The value."""
        return value

    def submit(self, needs: Needs, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> Any:
        """Call it."""
        return function(*arguments)

    def results(self, calls: Sequence[Any]) -> list[Any]:
        """They are results already."""
        return list(calls)

    def as_finished(self, calls: Iterable[Any]) -> Iterator[Any]:
        """A generator of calls makes one after the other."""
        yield from calls

    @contextmanager
    def open_shards(
        self, index: Location, snapshot: IndexSnapshot, crew: Crew, cache_dir: str | None
    ) -> Iterator[Shards]:
        """By one worker, here."""
        yield ShardsHere(ShardWorker(index, snapshot, range(len(snapshot.shards)), cache_dir, crew.threads))

    def most_threads(self) -> int:
        """As many as a Ray that is started here would have."""
        return self._threads

    def count_built(self, vectors: int) -> None:
        """Nobody could ask for it in time."""


class ShardsHere:
    """See `Shards`."""

    workers = 1

    def __init__(self, worker: ShardWorker) -> None:
        self._worker = worker

    def share(self, value: Any) -> Any:
        """The value."""
        return value

    def ask(self, question: Callable[..., Answer], *arguments: Any) -> list[Answer]:
        """The answer of the one worker."""
        return [question(self._worker, *arguments)]

    def ask_any(self, question: Callable[..., Answer], *arguments: Any) -> Answer:
        """The answer of the one worker."""
        return question(self._worker, *arguments)
