"""Time left on recorded times: the events of real runs, played back under a clock of our own.

`benchmarks.progress` recorded them (6,000 passages with MiniLM on two workers; of the small files, 3,500, and with its
quiet clock).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.forecast import Expected, Forecast, InHand

RECORDINGS = Path(__file__).parent / "recordings"


def play(name: str, until: float) -> tuple[Forecast, float]:
    """A recorded run up to a share of its time; and the seconds that it then still took."""
    recorded = json.loads((RECORDINGS / f"{name}.json").read_text())
    forecast = Forecast(Expected(source_bytes=recorded["source_bytes"]))
    end = recorded["events"][-1][0]
    for seconds, kind, *facts in recorded["events"]:
        if seconds > until * end:
            break
        if kind == "look":
            forecast.in_hand(seconds, {key: InHand(*fragment) for key, fragment in facts[0].items()})
        else:
            key, rows, tokens, source_bytes = facts
            forecast.finished(seconds, rows, 0, tokens, source_bytes, key=key)
    return forecast, end - until * end


@pytest.mark.parametrize("share", [0.5, 0.6, 0.75])
@pytest.mark.parametrize("name", ["small_files", "gzip", "parquet"])
def test_time_left_of_recorded_runs_is_within_a_fifth(name: str, share: float) -> None:
    forecast, left = play(name, share)
    seconds = json.loads((RECORDINGS / f"{name}.json").read_text())["events"][-1][0] * share
    assert forecast.seconds_left(seconds) == pytest.approx(left, rel=0.2)


@pytest.mark.parametrize("name", ["small_files", "gzip", "parquet"])
def test_recorded_tokens_are_counted_once(name: str) -> None:
    forecast, _ = play(name, 1.0)
    events = json.loads((RECORDINGS / f"{name}.json").read_text())["events"]
    assert forecast.tokens == forecast.now.tokens == sum(event[4] for event in events if event[1] == "fragment")
    assert forecast.tokens_left == pytest.approx(0, abs=0.05 * forecast.tokens)


def test_speed_is_known_from_the_first_tokens_and_without_the_start() -> None:
    forecast = Forecast(Expected(source_bytes=10_000))
    for second in range(60):  # workers start
        forecast.in_hand(float(second), {"a": InHand(0, 3000, 1000)} if second > 50 else {})
    assert forecast.tokens_per_second(59.0) == 0
    assert forecast.seconds_left(59.0) is None
    forecast.in_hand(60.0, {"a": InHand(500, 3000, 1000)})
    assert forecast.tokens_per_second(60.0) == pytest.approx(500)
    assert forecast.seconds_left(60.0) == pytest.approx((30_000 - 500) / 500)


def test_a_fragment_that_is_tried_again_counts_once() -> None:
    forecast = Forecast(Expected(source_bytes=3000))
    forecast.in_hand(1.0, {"a": InHand(900, 1000, 1000), "b": InHand(100, 1000, 1000)})
    assert forecast.tokens == 1000
    forecast.in_hand(2.0, {"a": InHand(50, 1000, 1000), "b": InHand(200, 1000, 1000)})  # the worker of a died
    assert forecast.tokens == 250
    assert forecast.tokens_per_second(2.0) >= 0
    forecast.finished(3.0, rows=10, rejected=0, tokens=1000, source_bytes=1000, key="a")
    assert forecast.tokens == 1200
    forecast.in_hand(4.0, {"a": InHand(1000, 1000, 1000), "b": InHand(900, 1000, 1000)})  # a late word of a
    assert forecast.tokens == 1900
    assert forecast.tokens_left == pytest.approx(3000 - 1900)


def test_what_earlier_runs_did_of_a_stream_is_neither_left_nor_speed() -> None:
    forecast = Forecast(Expected(resumed_fragments=6, source_bytes=10_000, resumed_tokens=6000))
    forecast.in_hand(0.0, {})
    forecast.in_hand(10.0, {"7": InHand(500, 1000, 1000)})
    assert forecast.tokens_left == pytest.approx(3500)
    assert forecast.tokens_per_second(10.0) == pytest.approx(50)


def test_a_plan_counts_until_the_source_is_known_better() -> None:
    """Half of the source has four times the tokens a byte of what comes first; only the plan's sample saw it."""
    blind = Forecast(Expected(source_bytes=100_000))
    planned = Forecast(Expected(source_bytes=100_000, tokens_per_byte=0.625))
    for forecast in (blind, planned):
        forecast.in_hand(1.0, {"a": InHand(10, 250, 1000)})
    assert blind.tokens_left == pytest.approx(0.25 * 100_000 - 10)
    assert planned.tokens_left == pytest.approx(0.625 * 100_000, rel=0.1)
    for number in range(90):
        planned.finished(2.0 + number, 10, 0, 625, 1000, key=str(number))
    planned.in_hand(100.0, {})
    assert planned.tokens_left == pytest.approx(6250, rel=0.05)


def test_what_is_all_rejected_leaves_nothing() -> None:
    forecast = Forecast(Expected(source_bytes=1000))
    forecast.finished(1.0, rows=10, rejected=10, tokens=0, source_bytes=1000)
    assert forecast.seconds_left(1.0) == 0
