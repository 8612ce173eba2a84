"""Where an index job computes: what its steps ask of Ray, or of the job's own process in Ray's stead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from operators.index.snapshot import IndexSnapshot
from operators.storage import Location

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a call takes of a cluster; `alone` is in a process that gives its memory back when the call has ended."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0  # bytes
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Crew:
    """What processes that hold shards open take of a cluster."""

    threads: int  # of each
    cpus: float  # that each reserves
    most: int | None = None  # processes; None: as many as there are shards, or room
    spare: float = 0.0  # CPUs of one node that are left to what runs beside them


class Shards(Protocol):
    """All shards of a snapshot, held open by `ShardWorker`s between them."""

    @property
    def workers(self) -> int:
        """How many hold them."""

    def share(self, value: Any) -> Any:
        """What to give to several questions in the value's place."""

    def ask(self, question: Callable[..., Answer], *arguments: Any) -> list[Answer]:
        """The answers of all workers to a method of `ShardWorker`."""

    def ask_any(self, question: Callable[..., Answer], *arguments: Any) -> Answer:
        """The answer of one worker."""


class Place(Protocol):
    """Where calls run; what `submit` returns is given to other calls, or to `results` and `as_finished`."""

    def share(self, value: Any) -> Any:
        """What to give to several calls in the value's place."""

    def submit(self, needs: Needs, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> Any:
        """Start a call; a list of `returns` where its result has several parts that go separate ways."""

    def results(self, calls: Sequence[Any]) -> list[Any]:
        """What calls have returned, in their order."""

    def as_finished(self, calls: Iterable[Any]) -> Iterator[Any]:
        """What calls have returned, each as soon as it has."""

    def open_shards(
        self, index: Location, snapshot: IndexSnapshot, crew: Crew, cache_dir: str | None
    ) -> AbstractContextManager[Shards]:
        """Hold all shards of a snapshot open while the block lasts."""

    def most_threads(self) -> int:
        """Threads that one call can have."""

    def count_built(self, vectors: int) -> None:
        """Add a shard to what a running job exports; 0 vectors: an earlier run had built it."""
