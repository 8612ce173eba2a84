"""How far a training is, told to the driver by the first worker: a line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from operators.training.curve import Evaluated, StepMetrics

_LINE_SECONDS = 10.0
_ASK_SECONDS = 1.0
_SMOOTHED_STEPS = 20


class Board:
    """Keeps what workers tell until the driver asks; an actor."""

    def __init__(self) -> None:
        self._records: list[StepMetrics | Evaluated] = []

    def show(self, record: StepMetrics | Evaluated) -> None:
        """Take note of a step or of an evaluation."""
        self._records.append(record)

    def take(self) -> list[StepMetrics | Evaluated]:
        """What was told since the last time."""
        records, self._records = self._records, []
        return records


class Lines:
    """Records in, lines of text out: all evaluations, and steps every so many seconds."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._recent: list[StepMetrics] = []
        self._last_line = float("-inf")

    def __call__(self, records: list[StepMetrics | Evaluated], now: float) -> Iterator[str]:
        is_new = False
        for record in records:
            if isinstance(record, Evaluated):
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
