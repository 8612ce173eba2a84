"""How fast a run is and how long it still takes, from what is on storage and what its workers have in hand.

Tokens are what takes time, so time left goes by them: those of fragments that workers have begun are known, the rest
is expected from the bytes of the source that are still to be read, at as many tokens a byte as in those that were. A
plan's estimate counts like the first `PLAN_SHARE` of the source. Speed is taken over a sliding window that begins with
the first tokens, not with the start of the workers; a fragment that is tried again counts once. Fragments that an
earlier run made count as done, but not as speed. Memory: a window of points, at most 1,024 points of the run's history,
and the keys of finished fragments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

WINDOW_SECONDS = 120.0
# A window keeps this many points even when they are older: with fragments of a minute and few workers, two minutes hold
# too few to tell a speed.
MIN_WINDOW_POINTS = 16
MAX_HISTORY = 1024
PLAN_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Point:
    """Where a run stood at one moment."""

    seconds: float  # since its start
    fragments: int = 0
    rows: int = 0
    rejected: int = 0
    tokens: int = 0
    source_bytes: int = 0


@dataclass(frozen=True, slots=True)
class InHand:
    """A fragment that a worker has begun and that is not on storage yet."""

    done_tokens: int
    tokens: int  # of the whole fragment
    source_bytes: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run has to do; None and 0: not known."""

    fragments: int | None = None  # streams hide how many there are
    resumed_fragments: int = 0  # made by earlier runs
    source_bytes: int | None = None  # of units of which something is missing
    resumed_tokens: int = 0  # of fragments of those units that earlier runs made
    tokens_per_byte: float | None = None  # by a plan


class Forecast:
    """Follows one run; the caller has the clock."""

    def __init__(self, expected: Expected, began: float = 0.0) -> None:
        """`began`: seconds at which the workers are known to have done nothing yet."""
        self.expected = expected
        self.now = Point(0.0)
        self._in_hand: dict[str, InHand] = {}
        self._finished: set[str] = set()
        self._looked_at = began
        self._window: deque[Point] = deque([self.now])  # tokens of these: those in hand included
        self._history = [self.now]
        self._stride, self._updates = 1, 0

    @property
    def tokens(self) -> int:
        """Computed so far, of fragments in hand too."""
        return self.now.tokens + sum(fragment.done_tokens for fragment in self._in_hand.values())

    def finished(
        self,
        seconds: float,
        rows: int,
        rejected: int,
        tokens: int,
        source_bytes: int = 0,
        fragments: int = 1,
        key: str | None = None,
    ) -> None:
        """Count what just came to storage; `source_bytes` of the source are thereby finished."""
        if key is not None:
            self._finished.add(key)
            self._in_hand.pop(key, None)
        before = self.now
        self.now = Point(
            seconds,
            before.fragments + fragments,
            before.rows + rows,
            before.rejected + rejected,
            before.tokens + tokens,
            before.source_bytes + source_bytes,
        )
        self._note(seconds)
        self._remember()

    def in_hand(self, seconds: float, fragments: Mapping[str, InHand]) -> None:
        """Take note of what the workers have in hand now, by key."""
        had_begun = self.tokens > 0
        self._in_hand = {key: fragment for key, fragment in fragments.items() if key not in self._finished}
        if not had_begun and self.tokens > 0:
            self._window = deque([Point(self._looked_at)])  # speed is that of workers that have begun
        self._looked_at = seconds
        self._note(seconds)

    def tokens_per_second(self, seconds: float) -> float:
        """Over the window; it falls while nothing arrives."""
        start = self._window_start(seconds)
        elapsed = seconds - start.seconds
        return max(self.tokens - start.tokens, 0) / elapsed if elapsed > 0 else 0.0

    @property
    def tokens_left(self) -> float | None:
        """Tokens that are still to be computed; None while there is nothing to tell it from."""
        expected, total_bytes = self.expected, self.expected.source_bytes
        known_tokens = self.now.tokens + sum(fragment.tokens for fragment in self._in_hand.values())
        known_bytes = self.now.source_bytes + sum(fragment.source_bytes for fragment in self._in_hand.values())
        if total_bytes is None:
            return None
        weight = PLAN_SHARE * total_bytes if expected.tokens_per_byte is not None else 0.0
        if known_bytes + weight <= 0:
            return None
        density = (known_tokens + weight * (expected.tokens_per_byte or 0.0)) / (known_bytes + weight)
        unread = max(density * max(total_bytes - known_bytes, 0) - expected.resumed_tokens, 0.0)
        return known_tokens - self.tokens + unread

    def seconds_left(self, seconds: float) -> float | None:
        """At the window's pace; None while it is not known."""
        tokens_left, speed = self.tokens_left, self.tokens_per_second(seconds)
        if tokens_left is not None and (speed > 0 or not tokens_left):
            return tokens_left / speed if tokens_left else 0.0
        start = self._window_start(seconds)
        if self.expected.fragments is None:
            return None
        done = self.now.fragments - start.fragments
        left = self.expected.fragments - self.expected.resumed_fragments - self.now.fragments
        return max(left, 0) * (seconds - start.seconds) / done if done > 0 else None

    @property
    def share_done(self) -> float | None:
        """Of this run's work, 0 to 1; None while it is not known."""
        tokens_left = self.tokens_left
        if tokens_left is not None and self.tokens:
            return self.tokens / (self.tokens + tokens_left)
        if self.expected.fragments:
            return min((self.now.fragments + self.expected.resumed_fragments) / self.expected.fragments, 1.0)
        return None

    @property
    def history(self) -> tuple[Point, ...]:
        """The run so far as at most about a thousand points, the first at its start and the last the latest."""
        last = () if self._history[-1] is self.now else (self.now,)
        return (*self._history, *last)

    def _window_start(self, seconds: float) -> Point:
        oldest = seconds - WINDOW_SECONDS
        while len(self._window) > MIN_WINDOW_POINTS and self._window[1].seconds <= oldest:
            self._window.popleft()
        return self._window[0]

    def _note(self, seconds: float) -> None:
        self._window.append(Point(seconds, self.now.fragments, tokens=self.tokens))

    def _remember(self) -> None:
        """Keep every `stride`-th point; when they are too many, every other of them, and half as many from then on."""
        self._updates += 1
        if self._updates % self._stride:
            return
        self._history.append(self.now)
        if len(self._history) > MAX_HISTORY:
            del self._history[1::2]
            self._stride *= 2
