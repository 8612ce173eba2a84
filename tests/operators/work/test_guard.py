"""Rows that kill their process are found, and nothing else is given up.

A process death is a `ProcessDied` raised where the process would die, with a ledger that does not hear of the end: the
driver below then begins anew, as Ray does.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.work.guard import MAX_DEATHS, Attempt, AttemptLedger, Guarded, run_guarded

FUZZ = settings(max_examples=60, deadline=None)


class ProcessDied(BaseException):
    """Ends a simulated worker process."""


class RemoteLedger:
    """A handle of a ledger as a worker process holds it: nothing gets through once the process is dead."""

    def __init__(self, ledger: AttemptLedger) -> None:
        self.ledger = ledger
        self.is_alive = True

    def begin(self, key: str, num_rows: int) -> Attempt:
        """Enter an attempt."""
        return self.ledger.begin(key, num_rows)

    def mark(self, key: str, start: int, end: int) -> None:
        """Enter the rows in work."""
        self.ledger.mark(key, start, end)

    def end(self, key: str) -> None:
        """Close the attempt, if the process still can."""
        if self.is_alive:
            self.ledger.end(key)


def drive(
    num_rows: int, dies: Callable[[int, int, int], bool], ledger: AttemptLedger | None = None, key: str = "f"
) -> Guarded[list[int]]:
    """Run to the end, with a new process after each death; `dies(start, end, deaths so far)` says when."""
    ledger = ledger or AttemptLedger()
    deaths = 0
    while True:
        remote = RemoteLedger(ledger)

        def work(start: int, end: int, remote: RemoteLedger = remote, deaths: int = deaths) -> list[int]:
            if dies(start, end, deaths):
                remote.is_alive = False
                raise ProcessDied
            return list(range(start, end))

        try:
            return run_guarded(remote, key, num_rows, work)
        except ProcessDied:
            deaths += 1


def rows_done(done: Guarded[list[int]]) -> list[int]:
    assert all(list(range(start, end)) == result for start, end, result in done.pieces)
    return [row for _, _, result in done.pieces for row in result]


@FUZZ
@given(st.data())
def test_poison_rows_are_found_exactly(data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(1, 16384))
    poison = data.draw(st.sets(st.integers(0, num_rows - 1), min_size=1, max_size=3))
    done = drive(num_rows, lambda start, end, _: any(start <= row < end for row in poison))
    assert set(done.killers) == poison
    assert len(done.killers) == len(poison)
    assert rows_done(done) == [row for row in range(num_rows) if row not in poison]
    assert done.deaths <= 2 + 5 * len(poison)


@FUZZ
@given(row=st.integers(0, 16383))
def test_one_row_in_16384_costs_seven_deaths(row: int) -> None:
    done = drive(16384, lambda start, end, _: start <= row < end)
    assert done.killers == (row,)
    assert done.deaths == 7


@pytest.mark.parametrize("num_rows", [1, 2, 15, 16, 17, 1000, 16384])
@pytest.mark.parametrize("num_losses", [0, 1, 2])
def test_lost_nodes_are_no_rows_fault(num_rows: int, num_losses: int) -> None:
    done = drive(num_rows, lambda start, end, deaths: deaths < num_losses)
    assert done.killers == ()
    assert done.deaths == num_losses
    assert rows_done(done) == list(range(num_rows))
    assert len(done.pieces) == 1 or num_losses == 2


@FUZZ
@given(num_rows=st.integers(2, 16384), losses=st.sets(st.integers(0, 12), max_size=3), seed=st.integers(0, 99))
def test_a_killer_is_found_among_lost_nodes(num_rows: int, losses: set[int], seed: int) -> None:
    """Nodes are lost at any piece while one row kills: that row alone is given up, or one that died alone twice."""
    poison = random.Random(seed).randrange(num_rows)
    alone: dict[int, int] = {}

    def dies(start: int, end: int, deaths: int) -> bool:
        is_dead = deaths in losses or start <= poison < end
        if is_dead and end - start == 1:
            alone[start] = alone.get(start, 0) + 1
        return is_dead

    done = drive(num_rows, dies)
    assert poison in done.killers
    assert all(alone[row] >= 2 for row in done.killers)
    assert sorted([*rows_done(done), *done.killers]) == list(range(num_rows))


def test_a_fragment_whose_processes_always_die_stops_the_run() -> None:
    with pytest.raises(RuntimeError, match=f"{MAX_DEATHS + 1} worker processes died on fragment f"):
        drive(16384, lambda start, end, _: True)


def test_a_small_fragment_of_killers_only() -> None:
    done = drive(5, lambda start, end, _: True)
    assert sorted(done.killers) == [0, 1, 2, 3, 4]
    assert done.pieces == ()


def test_an_exception_is_no_death() -> None:
    ledger = AttemptLedger()

    def fail(start: int, end: int) -> None:
        raise ValueError("bad batch")

    for _ in range(5):
        with pytest.raises(ValueError, match="bad batch"):
            run_guarded(ledger, "f", 10, fail)
    assert ledger.deaths() == 0
    assert drive(10, lambda *_: False, ledger).deaths == 0


def test_what_was_learnt_stays_for_a_repeat() -> None:
    ledger = AttemptLedger()
    first = drive(1000, lambda start, end, _: start <= 77 < end, ledger)
    again = drive(1000, lambda start, end, _: start <= 77 < end, ledger)
    assert again.killers == first.killers == (77,)
    assert again.deaths == first.deaths == ledger.deaths()


def test_fragments_are_apart_and_finished_ones_forgotten() -> None:
    ledger = AttemptLedger()
    for number in range(100):
        assert drive(10, lambda *_: False, ledger, f"good{number}").killers == ()
    assert drive(10, lambda start, end, _: start <= 3 < end, ledger, "bad").killers == (3,)
    assert drive(10, lambda *_: False, ledger, "good").deaths == 0
    assert ledger.begin("good0", 10) == Attempt(0, None, ())


def test_no_rows_at_all() -> None:
    assert drive(0, lambda *_: False).pieces == ((0, 0, []),)
    assert rows_done(drive(0, lambda start, end, deaths: deaths < 2)) == []
