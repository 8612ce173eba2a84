"""Where the workers of a run enter what they are at: attempts, and how far they are.

An `AttemptLedger`, which each attempt waits for, and beside it what progress is made of, which nobody waits for: a line
when a worker begins to load and when it is ready, and once a second how many tokens of its fragment are done. A run on
Ray has it in an actor that outlives the workers (jobs/embedding/remote_ledger.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from operators.embedder.tokens.windows import tokens_read
from operators.work.fragment import FragmentBatch
from operators.work.guard import AttemptLedger, Ledger

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


class RunLedger(Ledger, Protocol):
    """The board as the stages of a run see it: in this process, or a handle of one in another."""

    def worker(self, is_ready: bool) -> None:
        """See `Board.worker`; of the worker that calls."""

    def report(self, fragment: FragmentReport) -> None:
        """See `Board.report`."""

    def standing(self, finished: Sequence[str], timeout: float) -> Standing:
        """See `Board.standing`; raises where the board does not answer in `timeout` seconds."""


class OwnLedger(AttemptLedger):
    """The board of a run that is all in this process."""

    def __init__(self) -> None:
        super().__init__()
        self._board = Board()

    def worker(self, is_ready: bool) -> None:
        """See `Board.worker`; there is one."""
        self._board.worker("", is_ready)

    def report(self, fragment: FragmentReport) -> None:
        """See `Board.report`."""
        self._board.report(fragment)

    def standing(self, finished: Sequence[str], timeout: float) -> Standing:
        """See `Board.standing`; it answers at once."""
        return self._board.standing(finished)


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
