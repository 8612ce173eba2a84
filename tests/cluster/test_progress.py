"""Progress under a clock of our own: what is said, how often, and how the speed and the time left are reckoned."""

from __future__ import annotations

import io
import itertools
import logging
import re
import sys
import threading

import pytest

from cluster import progress
from cluster.forecast import MAX_HISTORY, Expected, InHand
from cluster.progress import Progress


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def run(shown: Progress, clock: Clock, fragments: int, seconds_each: float, source_bytes: int = 0) -> None:
    for _ in range(fragments):
        clock.now += seconds_each
        shown.update(rows=1000, rejected=2, tokens=120_000, source_bytes=source_bytes)


def test_plain_line_has_all_facts(clock: Clock, stream: io.StringIO) -> None:
    shown = Progress(40, resumed_fragments=8, workers=lambda: 3, stream=stream, clock=clock)
    run(shown, clock, fragments=4, seconds_each=12.0)
    assert stream.getvalue().splitlines()[-1] == (
        "[00:00:48] 12/40 fragments (8 from before), 4,000 rows, 10,000 tokens/s, 6 min left, 8 rejected, 3 workers"
    )


def test_plain_lines_are_at_least_five_seconds_apart(clock: Clock, stream: io.StringIO) -> None:
    with Progress(100_000, stream=stream, clock=clock) as shown:
        run(shown, clock, fragments=1000, seconds_each=0.1)
    times = [int(line[7:9]) + 60 * int(line[4:6]) for line in stream.getvalue().splitlines()]
    assert 5 <= len(times) <= 20
    assert min(later - sooner for sooner, later in zip([0, *times], times, strict=False)) >= 5


def test_plain_line_of_a_short_run_is_left_to_the_summary(clock: Clock, stream: io.StringIO) -> None:
    with Progress(3, stream=stream, clock=clock) as shown:
        run(shown, clock, fragments=3, seconds_each=1.0)
    assert stream.getvalue() == ""


def test_last_plain_line_shows_the_end(clock: Clock, stream: io.StringIO) -> None:
    with Progress(3, stream=stream, clock=clock) as shown:
        run(shown, clock, fragments=2, seconds_each=11.0)
        clock.now += 6.0
        shown.update(rows=1000, rejected=2, tokens=120_000)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/3", "2/3", "3/3"]


def test_stall_gives_a_line_a_minute_with_the_speed_falling(clock: Clock, stream: io.StringIO) -> None:
    shown = Progress(10, stream=stream, clock=clock)
    run(shown, clock, fragments=1, seconds_each=10.0)
    for _ in range(36):
        clock.now += 5.0
        shown.tick()
    speeds = [float(found.replace(",", "")) for found in re.findall(r"([\d,]+) tokens/s", stream.getvalue())]
    assert len(speeds) == 4
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[0] == 12_000


def test_lines_come_by_themselves_while_nothing_arrives(
    clock: Clock, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "MIN_LINE_SECONDS", 0.001)
    written = threading.Event()
    write = stream.write

    def write_and_tell(text: str) -> int:
        num = write(text)
        written.set()
        return num

    monkeypatch.setattr(stream, "write", write_and_tell)
    with Progress(10, stream=stream, clock=clock):
        clock.now += 61.0
        assert written.wait(30)
    assert stream.getvalue() == "[00:01:01] 0/10 fragments, 0 rows, starting, 0 rejected\n"


def test_speed_follows_the_last_minutes(clock: Clock, stream: io.StringIO) -> None:
    shown = Progress(1000, stream=stream, clock=clock)
    run(shown, clock, fragments=100, seconds_each=10.0)
    assert shown.tokens_per_second == pytest.approx(12_000)
    run(shown, clock, fragments=100, seconds_each=2.0)
    assert shown.tokens_per_second == pytest.approx(60_000)
    assert shown.seconds_left == pytest.approx(800 * 2.0)


def test_speed_of_slow_fragments_rests_on_several(clock: Clock, stream: io.StringIO) -> None:
    shown = Progress(100, stream=stream, clock=clock)
    for _ in range(10):  # two workers that finish nearly together, every five minutes
        run(shown, clock, fragments=1, seconds_each=299.0)
        run(shown, clock, fragments=1, seconds_each=1.0)
    assert shown.tokens_per_second == pytest.approx(240_000 / 300, rel=0.1)


def test_time_left_goes_by_bytes_where_they_are_known(clock: Clock, stream: io.StringIO) -> None:
    shown = Progress(None, total_bytes=10_000, stream=stream, clock=clock)
    assert shown.seconds_left is None
    run(shown, clock, fragments=5, seconds_each=10.0, source_bytes=500)
    assert shown.seconds_left == pytest.approx(150.0)
    assert "5 fragments, " in ", ".join(shown.facts())


def test_time_left_of_an_unknown_total_is_unknown(clock: Clock, stream: io.StringIO) -> None:
    shown = Progress(None, stream=stream, clock=clock)
    run(shown, clock, fragments=5, seconds_each=10.0)
    assert shown.seconds_left is None
    assert "left" not in stream.getvalue()


def test_time_left_does_not_count_resumed_fragments_as_speed(clock: Clock, stream: io.StringIO) -> None:
    shown = Progress(100, resumed_fragments=90, stream=stream, clock=clock)
    run(shown, clock, fragments=2, seconds_each=10.0)
    assert shown.seconds_left == pytest.approx(80.0)


def test_time_left_is_never_negative(clock: Clock, stream: io.StringIO) -> None:
    shown = Progress(2, total_bytes=100, stream=stream, clock=clock)
    run(shown, clock, fragments=3, seconds_each=1.0, source_bytes=60)
    assert shown.seconds_left == 0


def test_history_of_a_long_run_stays_small_and_keeps_both_ends(clock: Clock, stream: io.StringIO) -> None:
    shown = Progress(100_000, stream=stream, clock=clock)
    run(shown, clock, fragments=20_000, seconds_each=1.0)
    history = shown.history
    assert len(history) <= MAX_HISTORY + 1
    assert history[0].seconds == history[0].tokens == 0
    assert (history[-1].seconds, history[-1].fragments) == (20_000.0, 20_000)
    steps = [later.seconds - sooner.seconds for sooner, later in itertools.pairwise(history)]
    assert 0 < min(steps) <= max(steps) <= 64


def test_history_of_a_short_run_has_every_update(clock: Clock, stream: io.StringIO) -> None:
    shown = Progress(5, stream=stream, clock=clock)
    run(shown, clock, fragments=5, seconds_each=1.0)
    assert [point.rows for point in shown.history] == [0, 1000, 2000, 3000, 4000, 5000]


def test_terminal_shows_a_bar_and_all_facts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    with Progress(40, resumed_fragments=8, workers=lambda: 1, stream=terminal, clock=clock) as shown:
        run(shown, clock, fragments=4, seconds_each=12.0)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    last = text.rstrip().splitlines()[-1].strip()
    assert last == (
        "00:00:48  12/40 fragments (8 from before) · 4,000 rows · 10,000 tokens/s · 6 min left · 8 rejected · 1 worker"
    )
    assert "━" in text


def test_terminal_gives_back_the_streams_and_log_handlers(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    logger = logging.getLogger("test_progress")
    logger.addHandler(handler)
    out = sys.stdout
    with Progress(4, stream=terminal, clock=clock) as shown:
        logger.warning("a line in between")
        assert sys.stdout is out, "output into a file stays there"
        run(shown, clock, fragments=1, seconds_each=1.0)
    logger.removeHandler(handler)
    assert handler.stream is terminal
    assert sys.stderr is terminal
    assert "a line in between\n" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def test_error_within_leaves_the_display_and_goes_on_its_way(clock: Clock) -> None:
    terminal = Terminal()
    with pytest.raises(KeyError), Progress(4, stream=terminal, clock=clock):
        raise KeyError("boom")
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_a_line_has_the_speed_within_five_seconds_of_the_first_tokens(clock: Clock, stream: io.StringIO) -> None:
    shown = Progress(stream=stream, clock=clock)
    for phase, seconds in (("listing", 7), ("starting workers", 6), ("loading the model", 8)):
        shown.phase(phase)
        for _ in range(seconds):
            clock.now += 1.0
            shown.tick()
    shown.expect(Expected(source_bytes=10_000), lambda: 2)
    shown.phase("embedding")
    began = clock.now
    while "tokens/s" not in stream.getvalue():
        clock.now += 1.0
        done_tokens = round(100 * (clock.now - began))
        shown.in_hand({"a": InHand(done_tokens, 5000, 1000)})
        shown.tick()
    assert clock.now - began <= 5
    lines = [line.partition("] ")[2] for line in stream.getvalue().splitlines()]
    assert [line.partition(",")[0] for line in lines[:3]] == ["listing", "starting workers", "loading the model"]
    assert re.fullmatch(r"0 fragments, 0 rows, 100 tokens/s, 8 min left, 0 rejected, 2 workers", lines[-1])


def test_what_workers_have_in_hand_is_looked_at_every_second(clock: Clock, stream: io.StringIO) -> None:
    looked = threading.Event()
    with Progress(stream=stream, clock=clock, look=looked.set):
        assert looked.wait(30)
