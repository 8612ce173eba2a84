"""Where the workers of a run enter what they are at: attempts, and how far they are.

One actor on the driver's node that outlives the workers: an `AttemptLedger`, which each attempt waits for, and beside
it what progress is made of, which nobody waits for: a line when a worker begins to load and when it is ready, and once
a second how many tokens of its fragment are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from operators.embedder.tokens.windows import tokens_read
from operators.work.fragment import FragmentBatch
from operators.work.guard import Attempt, AttemptLedger

REPORT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class FragmentReport:
    """How far a fragment is, in the attempt that is going on."""

    key: str
    done_tokens: int
    tokens: int
    source_bytes: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What the workers are at; memory grows with the fragments in hand."""

    loading: int  # workers that have not embedded yet
    ready: int
    in_hand: tuple[FragmentReport, ...]


class Board(AttemptLedger):
    """The board itself."""

    def __init__(self) -> None:
        super().__init__()
        self._is_ready: dict[str, bool] = {}
        self._in_hand: dict[str, FragmentReport] = {}

    def worker(self, name: str, is_ready: bool) -> None:
        """Enter that a worker is loading its model, or has."""
        self._is_ready[name] = is_ready

    def report(self, fragment: FragmentReport) -> None:
        """Enter how far a fragment is; what an earlier attempt had done of it no longer counts."""
        self._in_hand[fragment.key] = fragment

    def standing(self, finished: Sequence[str]) -> Standing:
        """What the workers are at, without the fragments that are `finished` (keys) by now."""
        for key in finished:
            self._in_hand.pop(key, None)
        ready = sum(self._is_ready.values())
        return Standing(len(self._is_ready) - ready, ready, tuple(self._in_hand.values()))


class RemoteLedger:
    """A `Board` in a process of its own."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Board)
        self._actor: Any = actor.remote()

    def begin(self, key: str, num_rows: int) -> Attempt:
        """See `AttemptLedger.begin`."""
        attempt: Attempt = ray.get(self._actor.begin.remote(key, num_rows))
        return attempt

    def mark(self, key: str, start: int, end: int) -> None:
        """See `AttemptLedger.mark`; returns when it is entered, since the process may die right after."""
        ray.get(self._actor.mark.remote(key, start, end))

    def end(self, key: str) -> None:
        """See `AttemptLedger.end`."""
        ray.get(self._actor.end.remote(key))

    def deaths(self) -> int:
        """Processes that died so far."""
        return int(ray.get(self._actor.deaths.remote()))

    def worker(self, is_ready: bool) -> None:
        """See `Board.worker`; of the worker that calls."""
        self._actor.worker.remote(ray.get_runtime_context().get_worker_id(), is_ready)

    def report(self, fragment: FragmentReport) -> None:
        """See `Board.report`."""
        self._actor.report.remote(fragment)

    def standing(self, finished: Sequence[str], timeout: float) -> Standing:
        """See `Board.standing`; raises one of Ray's errors where the board does not answer in `timeout` seconds."""
        standing: Standing = ray.get(self._actor.standing.remote(list(finished)), timeout=timeout)
        return standing


class Reporter:
    """Tells how far a worker's fragment is, at most once a second, in a call that costs next to nothing otherwise."""

    def __init__(self, tell: Callable[[FragmentReport], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._fragment = FragmentReport("", 0, 0, 0)
        self._done_tokens, self._told_at = 0, 0.0

    def begin(self, batch: FragmentBatch) -> None:
        """A fragment at the TOKENS stage is taken in hand, perhaps once more."""
        tokens = int(tokens_read(batch.table).sum())
        self._fragment = FragmentReport(batch.fragment.key, 0, tokens, batch.counts.source_bytes)
        self._done_tokens = 0
        self._say()

    def add(self, tokens: int) -> None:
        """So many tokens more are done."""
        self._done_tokens += tokens
        if self._clock() - self._told_at >= REPORT_SECONDS:
            self._say()

    def end(self) -> None:
        """The whole fragment is done."""
        self._done_tokens = self._fragment.tokens
        self._say()

    def _say(self) -> None:
        self._told_at = self._clock()
        fragment = self._fragment
        # A part that is embedded a second time, because the model failed on one of its rows, counts no further
        done_tokens = min(self._done_tokens, fragment.tokens)
        self._tell(FragmentReport(fragment.key, done_tokens, fragment.tokens, fragment.source_bytes))
