"""The board of a run on Ray: an actor on the driver's node that outlives the workers, and the handle they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.embedding.board import Board, FragmentReport, Standing
from operators.work.guard import Attempt


class RemoteLedger:
    """A `Board` in a process of its own."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Board)
        self._actor: Any = actor.remote()

    def begin(self, key: str, num_rows: int) -> Attempt:
        """See `AttemptLedger.begin`."""
        attempt: Attempt = ray.get(self._actor.begin.remote(key, num_rows))
        return attempt

    def mark(self, key: str, start: int, end: int) -> None:
        """See `AttemptLedger.mark`; returns when it is entered, since the process may die right after."""
        ray.get(self._actor.mark.remote(key, start, end))

    def end(self, key: str) -> None:
        """See `AttemptLedger.end`."""
        ray.get(self._actor.end.remote(key))

    def deaths(self) -> int:
        """Processes that died so far."""
        return int(ray.get(self._actor.deaths.remote()))

    def worker(self, is_ready: bool) -> None:
        """See `Board.worker`; of the worker that calls."""
        self._actor.worker.remote(ray.get_runtime_context().get_worker_id(), is_ready)

    def report(self, fragment: FragmentReport) -> None:
        """See `Board.report`."""
        self._actor.report.remote(fragment)

    def standing(self, finished: Sequence[str], timeout: float) -> Standing:
        """See `Board.standing`; raises one of Ray's errors where the board does not answer in `timeout` seconds."""
        standing: Standing = ray.get(self._actor.standing.remote(list(finished)), timeout=timeout)
        return standing
