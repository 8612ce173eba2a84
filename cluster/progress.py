"""How far a run is: live on a terminal, one plain line now and then where there is none.

The facts are the same in both: fragments, rows, tokens per second, time left, rejected rows, workers. Speed is taken
over a sliding window, because fragments arrive in bursts; time left goes by bytes of the source where they are known
and by fragments otherwise. Fragments that an earlier run made count as done, but not as speed. Lines appear at most
every `MIN_LINE_SECONDS`, and during a stall at least every `STALL_LINE_SECONDS`, so that a log says that nothing moves.
Memory: a window of points and at most 1,024 points of the run's history, whatever its length.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

MIN_LINE_SECONDS = 5.0
LINE_SECONDS = 10.0
STALL_LINE_SECONDS = 60.0
WINDOW_SECONDS = 120.0
# A window keeps this many points even when they are older: with fragments of a minute and few workers, two minutes hold
# too few to tell a speed.
MIN_WINDOW_POINTS = 16
MAX_HISTORY = 1024


@dataclass(frozen=True, slots=True)
class Point:
    """Where a run stood at one moment."""

    seconds: float  # since its start
    fragments: int = 0
    rows: int = 0
    rejected: int = 0
    tokens: int = 0
    source_bytes: int = 0


class Progress:
    """Follows a run of `total_fragments` (None: streams hide how many there are), of which some were done before."""

    def __init__(
        self,
        total_fragments: int | None,
        resumed_fragments: int = 0,
        total_bytes: int | None = None,
        workers: Callable[[], int | None] | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total_bytes` are those of the source still to be read; `workers` tells how many embed right now."""
        self._total_fragments, self._resumed, self._total_bytes = total_fragments, resumed_fragments, total_bytes
        self._workers = workers
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._lock = threading.RLock()
        self._start = clock()
        self._now = Point(0.0)
        self._window: deque[Point] = deque([self._now])
        self._history = [self._now]
        self._stride, self._updates = 1, 0
        self._shown, self._shown_at = self._now, 0.0
        self._live: Live | None = None
        self._moved_handlers: list[logging.StreamHandler[TextIO]] = []
        self._stop = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> Progress:
        """Start the display; on a plain stream, a thread that keeps lines coming while nothing arrives."""
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
        else:
            self._ticker = threading.Thread(target=self._tick_until_stopped, name="progress", daemon=True)
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display with the last state left in place."""
        self._stop.set()
        if self._live is not None:
            for handler in self._moved_handlers:
                handler.setStream(self._stream)
            self._live.stop()
        if self._ticker is not None:
            self._ticker.join()
            self.tick(last=True)

    def update(self, rows: int, rejected: int, tokens: int, source_bytes: int = 0, fragments: int = 1) -> None:
        """Count what just came to storage; `source_bytes` of the source are thereby finished."""
        with self._lock:
            before = self._now
            self._now = Point(
                self._clock() - self._start,
                before.fragments + fragments,
                before.rows + rows,
                before.rejected + rejected,
                before.tokens + tokens,
                before.source_bytes + source_bytes,
            )
            self._window.append(self._now)
            self._remember()
        if self._live is None:
            self.tick()

    def tick(self, last: bool = False) -> None:
        """Write a line if one is due; the `last` one is due as soon as there is news."""
        with self._lock:
            seconds = self._clock() - self._start
            waited = seconds - self._shown_at
            is_news = self._now is not self._shown
            due = (LINE_SECONDS if is_news else STALL_LINE_SECONDS) if not last else MIN_LINE_SECONDS
            if waited < due or (last and not is_news):
                return
            self._shown, self._shown_at = self._now, seconds
            self._stream.write(f"[{_clock_time(seconds)}] {', '.join(self.facts())}\n")
            self._stream.flush()

    def facts(self) -> tuple[str, ...]:
        """The state in words: fragments, rows, speed, time left, rejected rows, workers."""
        with self._lock:
            now = self._now
            speed = self.tokens_per_second
            left = self.seconds_left
            done = f"{now.fragments + self._resumed:,}"
            total = f"/{self._total_fragments:,}" if self._total_fragments is not None else ""
            resumed = f" ({self._resumed:,} from before)" if self._resumed else ""
            facts = [f"{done}{total} fragments{resumed}", f"{now.rows:,} rows"]
            facts.append(f"{_scaled(speed)} tokens/s" if now.tokens else "starting")
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
            start = self._window_start()
            elapsed = self._clock() - self._start - start.seconds
            return (self._now.tokens - start.tokens) / elapsed if elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the window's pace; None while it is not known."""
        with self._lock:
            start = self._window_start()
            elapsed = self._clock() - self._start - start.seconds
            if self._total_bytes is not None and self._now.source_bytes:
                done, left = self._now.source_bytes - start.source_bytes, self._total_bytes - self._now.source_bytes
            elif self._total_fragments is not None:
                done = self._now.fragments - start.fragments
                left = self._total_fragments - self._resumed - self._now.fragments
            else:
                return None
            return max(left, 0) * elapsed / done if done > 0 else None

    @property
    def history(self) -> tuple[Point, ...]:
        """The run so far as at most about a thousand points, the first at its start and the last the latest."""
        with self._lock:
            last = () if self._history[-1] is self._now else (self._now,)
            return (*self._history, *last)

    def _window_start(self) -> Point:
        oldest = self._clock() - self._start - WINDOW_SECONDS
        while len(self._window) > MIN_WINDOW_POINTS and self._window[1].seconds <= oldest:
            self._window.popleft()
        return self._window[0]

    def _remember(self) -> None:
        """Keep every `stride`-th point; when they are too many, every other of them, and half as many from then on."""
        self._updates += 1
        if self._updates % self._stride:
            return
        self._history.append(self._now)
        if len(self._history) > MAX_HISTORY:
            del self._history[1::2]
            self._stride *= 2

    def _tick_until_stopped(self) -> None:
        while not self._stop.wait(MIN_LINE_SECONDS):
            self.tick()

    def _render(self) -> Table:
        with self._lock:
            facts = self.facts()
            if self._total_bytes is not None and self._now.source_bytes:
                done, total = float(self._now.source_bytes), float(self._total_bytes)
            else:
                done = float(self._now.fragments + self._resumed)
                total = float(self._total_fragments) if self._total_fragments is not None else 0.0
            seconds = self._clock() - self._start
            bar = ProgressBar(total=total or None, completed=min(done, total), pulse=not total)
            grid = Table.grid(expand=True)
            grid.add_row(bar)
            grid.add_row(Text(f"{_clock_time(seconds)}  {' · '.join(facts)}"))
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
