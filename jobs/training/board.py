"""What workers of a training tell the driver while it goes on: how far they are, and why it is no use to go on."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from operators.errors import InputError
from operators.storage import StorageError
from operators.training.record.curve import Evaluated, StepMetrics

_LINE_SECONDS = 10.0
_ASK_SECONDS = 1.0
_SMOOTHED_STEPS = 20


Shown = StepMetrics | Evaluated | str


class Board:
    """Keeps what workers tell until somebody asks; an actor."""

    def __init__(self) -> None:
        self._shown: list[Shown] = []
        self._fault: str | None = None

    def show(self, news: Shown) -> None:
        """Take note of a step, of an evaluation, or of what the user should know."""
        self._shown.append(news)

    def take(self) -> list[Shown]:
        """What was told since the last time."""
        shown, self._shown = self._shown, []
        return shown

    def stop(self, fault: str) -> None:
        """Take note of a fault that would come again; the first one counts."""
        self._fault = self._fault or fault

    def fault(self) -> str | None:
        """Why the run is not to go on."""
        return self._fault


@contextmanager
def final_faults_told(board: Any) -> Iterator[None]:
    """Tell of faults that only the user can mend, so that Ray Train does not try them again and again."""
    try:
        yield
    except InputError as error:
        ray.get(board.stop.remote(str(error)))
        raise
    except StorageError as error:
        if error.errno == errno.ENOSPC:
            ray.get(board.stop.remote(error.strerror or str(error)))
        raise


class Lines:
    """News in, lines of text out: texts and evaluations at once, steps every so many seconds."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._recent: list[StepMetrics] = []
        self._last_line = float("-inf")

    def __call__(self, news: list[Shown], now: float) -> Iterator[str]:
        is_new = False
        for record in news:
            if isinstance(record, str):
                yield record
            elif isinstance(record, Evaluated):
                scores = ", ".join(f"{name} {value:.4f}" for name, value in record.scores.items())
                yield f"step {record.step:,} of {self._num_steps:,}: {scores}"
            else:
                self._recent, is_new = [*self._recent[1 - _SMOOTHED_STEPS :], record], True
        if is_new and now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            yield self._line()

    def _line(self) -> str:
        recent = self._recent
        seconds = sum(one.seconds for one in recent)
        loss = sum(one.loss for one in recent) / len(recent)
        left = (self._num_steps - recent[-1].step - 1) * seconds / len(recent)
        speed = sum(one.tokens for one in recent) / seconds if seconds else 0.0
        return (
            f"step {recent[-1].step + 1:,} of {self._num_steps:,}: loss {loss:.4f}, {speed:,.0f} tokens/s, "
            f"{left / 60:.0f} min of steps left"
        )


@contextmanager
def shown_board(num_steps: int) -> Iterator[Any]:
    """A board whose news are printed while the block runs."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(Board).remote()
    lines, over = Lines(num_steps), threading.Event()

    def show() -> None:
        for line in lines(ray.get(board.take.remote()), time.monotonic()):
            print(line, flush=True)

    def follow() -> None:
        while not over.wait(_ASK_SECONDS):
            show()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        over.set()
        thread.join()
        show()
        ray.kill(board)
