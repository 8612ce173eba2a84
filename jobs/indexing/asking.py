"""Answers of Ray actors, of which one may get lost, and one may take long."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

logger = logging.getLogger(__name__)

_FETCH_SECONDS = 300.0  # for an answer that is ready


@dataclass(frozen=True, slots=True)
class Patience:
    """How long answers are waited for."""

    seconds: float = 7200.0  # in all
    look_again: float = 150.0  # seconds after which a worker is asked whether it still works
    times: int = 5  # that one worker is asked


class NoAnswerError(Exception):
    """A worker has not answered in time, or its answers got lost again and again."""


@dataclass(slots=True)
class _Asked:
    """What one actor was asked, and what it was sent behind that to learn whether it still works on it."""

    actor: Any
    times: int = 0
    calls: list[Any] = field(default_factory=list)
    probes: list[Any] = field(default_factory=list)

    def ask(self, method: str, arguments: Sequence[Any]) -> None:
        self.calls.append(getattr(self.actor, method).remote(*arguments))
        self.times += 1
        self.probes.clear()

    def is_lost(self) -> bool:
        """Whether the actor does other things by now: it takes calls in their order."""
        return not self.calls or bool(self.probes and ray.wait(self.probes, timeout=0)[0])


def answers_of(actors: Sequence[Any], method: str, arguments: Sequence[Any], patience: Patience) -> list[Any]:
    """What a method of each actor returns; one whose answer got lost is asked again, one that is slow is not.

    Ray 2.60 restarts a worker whose node died and repeats its calls, but an answer that got lost with the node just
    when it was ready is now and then awaited for ever. Raises NoAnswerError when `patience` is at its end.
    """
    found: dict[int, Any] = {}
    asked = {number: _Asked(actor) for number, actor in enumerate(actors)}
    for each in asked.values():
        each.ask(method, arguments)
    deadline = time.monotonic() + patience.seconds
    while asked:
        _collect(asked, found, min(patience.look_again, deadline - time.monotonic()))
        if asked and (time.monotonic() >= deadline or max(each.times for each in asked.values()) > patience.times):
            raise NoAnswerError(
                f"{len(asked)} of {len(actors)} workers gave no answer within {patience.seconds:.0f} s, or lost it "
                f"{patience.times} times: look at their nodes (`ray status`, `ray list actors`) and run again"
            )
        for each in asked.values():
            if each.is_lost():
                logger.warning("asking a worker again: its answer got lost")
                each.ask(method, arguments)
            else:
                each.probes.append(each.actor.__ray_ready__.remote())
    return [found[number] for number in range(len(actors))]


def _collect(asked: dict[int, _Asked], found: dict[int, Any], seconds: float) -> None:
    """Move what is answered within so many seconds from `asked` to `found`; end early where an answer got lost."""
    deadline = time.monotonic() + seconds
    waiting = {call: number for number, each in asked.items() for call in each.calls}
    while waiting:
        ready, _ = ray.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            return
        [call] = ready
        number = waiting.pop(call)
        try:
            found[number] = ray.get(call, timeout=_FETCH_SECONDS)
        except (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError):
            asked[number].calls.remove(call)
            return
        del asked[number]
        waiting = {other: its for other, its in waiting.items() if its != number}
