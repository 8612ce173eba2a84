"""What workers say of their fragments, and what the board makes of it."""

from __future__ import annotations

import pyarrow as pa
import pytest

from jobs.embedding.board import Board, FragmentReport, Reporter, Standing
from operators.work.fragment import REJECTED_SCHEMA, Counts, Extent, Fragment, FragmentBatch, SourceFile, Unit


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def batch(num_tokens: list[int]) -> FragmentBatch:
    unit = Unit.of((Extent(SourceFile("/none/a.jsonl", 100, "1")),), "")
    rows, rejected = pa.table({"num_tokens": pa.array(num_tokens, pa.int32())}), REJECTED_SCHEMA.empty_table()
    return FragmentBatch(Fragment(unit, 0, True), rows, rejected, Counts(source_bytes=77))


def test_a_worker_reports_once_a_second_and_at_both_ends() -> None:
    clock, told = Clock(), list[FragmentReport]()
    reporter = Reporter(told.append, clock)
    fragment = batch([100, 200, 300])
    reporter.begin(fragment)
    for _ in range(50):
        clock.now += 0.1
        reporter.add(10)
    reporter.end()
    key = fragment.fragment.key
    assert told[0] == FragmentReport(key, 0, 600, 77)
    assert [report.done_tokens for report in told[1:-1]] == pytest.approx([100, 200, 300, 400, 500], abs=20)
    assert told[-1] == FragmentReport(key, 600, 600, 77)


def test_tokens_that_are_computed_twice_do_not_count_beyond_the_fragment() -> None:
    clock, told = Clock(), list[FragmentReport]()
    reporter = Reporter(told.append, clock)
    reporter.begin(batch([100]))
    for _ in range(3):
        clock.now += 2
        reporter.add(90)
    assert [report.done_tokens for report in told] == [0, 90, 100, 100]


def test_a_second_attempt_takes_the_place_of_the_first() -> None:
    board = Board()
    board.report(FragmentReport("a", 500, 600, 7))
    board.report(FragmentReport("b", 10, 20, 7))
    board.report(FragmentReport("a", 0, 600, 7))
    assert board.standing([]).in_hand == (FragmentReport("a", 0, 600, 7), FragmentReport("b", 10, 20, 7))
    assert board.standing(["a", "c"]) == Standing(0, 0, (FragmentReport("b", 10, 20, 7),))


def test_the_board_counts_workers_that_load_and_that_are_ready() -> None:
    board = Board()
    for name in "abc":
        board.worker(name, is_ready=False)
    board.worker("b", is_ready=True)
    assert (board.standing([]).loading, board.standing([]).ready) == (2, 1)
