"""How far a run is: live on a terminal, one plain line now and then where there is none.

The facts are the same in both: what goes on before the first tokens (listing, starting workers, ...), then fragments,
rows, tokens per second, time left, rejected rows, workers. Speed and time left are those of cluster/forecast.py, looked
at once a second. Lines appear at most every `MIN_LINE_SECONDS`: at once where the run has come to something new, else
every `LINE_SECONDS`, and during a stall at least every `STALL_LINE_SECONDS`, so that a log says that nothing moves.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.forecast import Expected, Forecast, InHand, Point

LOOK_SECONDS = 1.0
MIN_LINE_SECONDS = 5.0
LINE_SECONDS = 10.0
STALL_LINE_SECONDS = 60.0


class Progress:
    """Follows a run of `total_fragments` (None: streams hide how many there are), of which some were done before."""

    def __init__(
        self,
        total_fragments: int | None = None,
        resumed_fragments: int = 0,
        total_bytes: int | None = None,
        workers: Callable[[], int | None] | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        look: Callable[[], None] | None = None,
    ) -> None:
        """`total_bytes` are those of the source still to be read; `workers` tells how many embed right now.

        `look` is called once a second, by a thread of its own, to call `phase` and `in_hand` with what there is.
        """
        self._forecast = Forecast(Expected(total_fragments, resumed_fragments, total_bytes))
        self._workers, self._look = workers, look
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._lock = threading.RLock()
        self._start = clock()
        self._phase: str | None = None
        self._shown: tuple[object, ...] = self._state()
        self._shown_at = 0.0
        self._live: Live | None = None
        self._moved_handlers: list[logging.StreamHandler[TextIO]] = []
        self._stop = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> Progress:
        """Start the display, and a thread that looks and, on a plain stream, keeps lines coming."""
        if self._stream.isatty():
            self._live = Live(
                get_renderable=self._render,
                console=Console(file=self._stream),
                refresh_per_second=2,
                redirect_stdout=sys.stdout.isatty(),  # output that goes to a file must stay there
            )
            self._live.start()
            self._moved_handlers = _handlers_writing_to(self._stream)
            for handler in self._moved_handlers:
                handler.setStream(sys.stderr)  # which puts what is logged above the display, not through it
        self._ticker = threading.Thread(target=self._tick_until_stopped, name="progress", daemon=True)
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display with the last state left in place."""
        self._stop.set()
        if self._ticker is not None:
            self._ticker.join()
        if self._live is not None:
            for handler in self._moved_handlers:
                handler.setStream(self._stream)
            self._live.stop()
        else:
            self.tick(last=True)

    def expect(self, expected: Expected, workers: Callable[[], int | None] | None = None) -> None:
        """Say what the run has to do, once that is known; nothing may have come to storage before."""
        with self._lock:
            self._forecast = Forecast(expected, self._seconds)
            self._workers = workers or self._workers

    def phase(self, name: str) -> None:
        """Say what goes on before the first tokens: "listing", "starting workers"."""
        with self._lock:
            self._phase = name
        self._tick_plain()

    def in_hand(self, fragments: Mapping[str, InHand]) -> None:
        """Say what the workers have in hand now, by key."""
        with self._lock:
            self._forecast.in_hand(self._seconds, fragments)

    def update(
        self,
        rows: int,
        rejected: int,
        tokens: int,
        source_bytes: int = 0,
        fragments: int = 1,
        key: str | None = None,
    ) -> None:
        """Count what just came to storage; `source_bytes` of the source are thereby finished.

        With the `key` of a fragment that was in hand, what was done of it no longer counts besides.
        """
        with self._lock:
            self._forecast.finished(self._seconds, rows, rejected, tokens, source_bytes, fragments, key)
        self._tick_plain()

    def tick(self, last: bool = False) -> None:
        """Write a line if one is due; the `last` one is due as soon as there is news."""
        with self._lock:
            waited = self._seconds - self._shown_at
            state = self._state()
            is_news = state != self._shown
            is_new_phase = state[0] != self._shown[0]
            due = MIN_LINE_SECONDS if last or is_new_phase else LINE_SECONDS if is_news else STALL_LINE_SECONDS
            if waited < due or (last and not is_news):
                return
            self._shown, self._shown_at = state, self._seconds
            self._stream.write(f"[{_clock_time(self._seconds)}] {', '.join(self.facts())}\n")
            self._stream.flush()

    def facts(self) -> tuple[str, ...]:
        """The state in words: fragments, rows, speed, time left, rejected rows, workers."""
        with self._lock:
            forecast, now, expected = self._forecast, self._forecast.now, self._forecast.expected
            tokens, left = forecast.tokens, self.seconds_left
            done = f"{now.fragments + expected.resumed_fragments:,}"
            total = f"/{expected.fragments:,}" if expected.fragments is not None else ""
            resumed = f" ({expected.resumed_fragments:,} from before)" if expected.resumed_fragments else ""
            if self._phase is not None and not tokens and not now.fragments:
                return (self._phase,)
            facts = [f"{done}{total} fragments{resumed}", f"{now.rows:,} rows"]
            facts.append(f"{_scaled(self.tokens_per_second)} tokens/s" if tokens else self._phase or "starting")
            if left is not None:
                facts.append(f"{_duration(left)} left")
            facts.append(f"{now.rejected:,} rejected")
            workers = self._workers() if self._workers is not None else None
            if workers is not None:
                facts.append(f"{workers:,} worker{'s' if workers != 1 else ''}")
            return tuple(facts)

    @property
    def tokens_per_second(self) -> float:
        """Over the window; it falls while nothing arrives."""
        with self._lock:
            return self._forecast.tokens_per_second(self._seconds)

    @property
    def seconds_left(self) -> float | None:
        """At the window's pace; None while it is not known."""
        with self._lock:
            return self._forecast.seconds_left(self._seconds)

    @property
    def history(self) -> tuple[Point, ...]:
        """The run so far as at most about a thousand points, the first at its start and the last the latest."""
        with self._lock:
            return self._forecast.history

    @property
    def _seconds(self) -> float:
        return self._clock() - self._start

    def _state(self) -> tuple[object, ...]:
        """What a line would tell; its first entry is what the run is at."""
        tokens = self._forecast.tokens
        return ("first tokens" if tokens else self._phase), tokens, self._forecast.now

    def _tick_plain(self) -> None:
        if self._live is None:
            self.tick()

    def _tick_until_stopped(self) -> None:
        while not self._stop.wait(min(LOOK_SECONDS, MIN_LINE_SECONDS)):
            if self._look is not None:
                self._look()
            self._tick_plain()

    def _render(self) -> Table:
        with self._lock:
            share = self._forecast.share_done
            bar = ProgressBar(total=1.0 if share is not None else None, completed=share or 0.0, pulse=share is None)
            grid = Table.grid(expand=True)
            grid.add_row(bar)
            grid.add_row(Text(f"{_clock_time(self._seconds)}  {' · '.join(self.facts())}"))
            return grid


def _handlers_writing_to(stream: TextIO) -> list[logging.StreamHandler[TextIO]]:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = [handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers]
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler) and handler.stream is stream]


def _clock_time(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _scaled(number: float) -> str:
    for step, name in ((1e9, " B"), (1e6, " M")):
        if number >= step:
            return f"{number / step:.2f}{name}"
    return f"{number:,.0f}"
