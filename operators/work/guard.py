"""Find the rows that kill their worker process, and go on without them.

Ray starts a dead worker's task again, forever. So every attempt at a fragment is entered in a ledger that outlives the
workers: an entry that was begun and never ended is a death. After `PATIENCE` deaths (a lost node or a passing shortage
of memory is no row's fault) the rows are worked on in `FAN_OUT` pieces, each entered before it starts, the suspect
piece of the last death first; each death narrows the search to one piece, and a row that died alone twice is given up.
One bad row among 16,384 costs PATIENCE + log(16384, FAN_OUT) + 1 = 7 deaths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

Result = TypeVar("Result")

PATIENCE = 2
FAN_OUT = 16
SINGLE_ROW_DEATHS = 2
# A fragment in which so many processes died has a cause that is not its rows: a broken driver, too little memory.
MAX_DEATHS = 64


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is known of a piece of work when it is begun (again)."""

    deaths: int
    suspect: tuple[int, int] | None  # rows [start, end) in work when the process died, once patience is over
    killers: tuple[int, ...]  # rows given up


class Ledger(Protocol):
    """Where attempts are entered: `AttemptLedger` itself, or a handle of one that lives in another process."""

    def begin(self, key: str, num_rows: int) -> Attempt:
        """Enter an attempt at all rows of `key`."""

    def mark(self, key: str, start: int, end: int) -> None:
        """Enter that rows [start, end) are being worked on now."""

    def end(self, key: str) -> None:
        """Enter that the attempt is over, well or with an exception: the process lives."""


@dataclass(slots=True)
class _Entry:
    at_work: tuple[int, int] | None = None
    deaths: int = 0
    alone: Counter[int] = field(default_factory=Counter)
    killers: list[int] = field(default_factory=list)


class AttemptLedger:
    """The ledger itself; memory grows with the fragments in work and those that saw a death, not with all of them."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def begin(self, key: str, num_rows: int) -> Attempt:
        """Enter an attempt; one that was never ended before is a death."""
        entry = self._entries.setdefault(key, _Entry())
        suspect = None
        if entry.at_work is not None:
            entry.deaths += 1
            start, end = entry.at_work
            # Up to PATIENCE all rows were at work: where that is a single row, it is not suspect for it.
            if end - start == 1 and entry.deaths > PATIENCE:
                entry.alone[start] += 1
            if end - start == 1 and entry.alone[start] >= SINGLE_ROW_DEATHS:
                entry.killers.append(start)
            elif entry.deaths >= PATIENCE:
                suspect = (start, end)
        entry.at_work = (0, num_rows)
        return Attempt(entry.deaths, suspect, tuple(entry.killers))

    def mark(self, key: str, start: int, end: int) -> None:
        """Enter the rows in work."""
        self._entries[key].at_work = (start, end)

    def end(self, key: str) -> None:
        """Close the attempt; what was learnt of killers stays, should the work have to be done once more."""
        entry = self._entries.get(key)
        if entry is None:
            return
        if entry.deaths:
            entry.at_work = None
        else:
            del self._entries[key]

    def deaths(self) -> int:
        """Processes that died so far."""
        return sum(entry.deaths for entry in self._entries.values())


@dataclass(frozen=True, slots=True)
class Guarded(Generic[Result]):
    """Results of rows [start, end) in row order, the rows given up, and how many processes they killed."""

    pieces: tuple[tuple[int, int, Result], ...]
    killers: tuple[int, ...]
    deaths: int


def run_guarded(ledger: Ledger, key: str, num_rows: int, work: Callable[[int, int], Result]) -> Guarded[Result]:
    """Do `work(start, end)` over all rows but the killers: in one piece, or in small ones after deaths.

    Raises RuntimeError when too many processes died for single rows to be the cause; exceptions of `work` propagate.
    """
    attempt = ledger.begin(key, num_rows)
    try:
        if attempt.deaths > MAX_DEATHS:
            raise RuntimeError(
                f"{attempt.deaths} worker processes died on fragment {key}, so its rows are hardly the cause: look at "
                "the workers' memory and logs, then run again"
            )
        if attempt.deaths < PATIENCE:
            return Guarded(((0, num_rows, work(0, num_rows)),), (), attempt.deaths)
        pieces = []
        for start, end in _careful_order(num_rows, attempt):
            ledger.mark(key, start, end)
            pieces.append((start, end, work(start, end)))
        return Guarded(tuple(sorted(pieces, key=lambda piece: piece[0])), attempt.killers, attempt.deaths)
    finally:
        ledger.end(key)


def _careful_order(num_rows: int, attempt: Attempt) -> list[tuple[int, int]]:
    """Pieces that cover all rows but the killers, the suspect's own (a FAN_OUT-th of it each) first."""
    suspect = attempt.suspect or (0, 0)
    size = max(1, -(-(suspect[1] - suspect[0]) // FAN_OUT))
    first = _without(attempt.killers, [(s, min(s + size, suspect[1])) for s in range(suspect[0], suspect[1], size)])
    rest_size = max(1, -(-num_rows // FAN_OUT))
    outside = [(0, suspect[0]), (suspect[1], num_rows)]
    rest = [(s, min(s + rest_size, end)) for begin, end in outside for s in range(begin, end, rest_size)]
    return first + _without(attempt.killers, rest)


def _without(killers: tuple[int, ...], pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Split pieces around the killer rows."""
    for killer in killers:
        split = []
        for start, end in pieces:
            split += [(start, end)] if not start <= killer < end else [(start, killer), (killer + 1, end)]
        pieces = [piece for piece in split if piece[0] < piece[1]]
    return pieces
