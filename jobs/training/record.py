"""What the first worker tells of a run while it goes on: the driver, Ray's metrics, TensorBoard, trackers."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from cluster.metrics import train_metrics
from jobs.training.identity import public_config
from jobs.training.run import TrainRun
from operators.embedder.recipe.fingerprint import mapping_digest
from operators.storage import delete, list_folder, upload
from operators.training.record.curve import Curve, Evaluated, StepMetrics
from operators.training.record.tensorboard import stale, write_events
from operators.training.record.tracking import TrackedRun, trackers

_JOB = "train"
_EVENTS = "tensorboard"


class RunRecorder:
    """Tells of one run, which goes on at `first_step`."""

    def __init__(self, run: TrainRun, board: Any, first_step: int) -> None:
        self._board = board
        self._metrics = train_metrics(_JOB)
        self._events = run.output / _EVENTS
        self._scratch = Path(tempfile.mkdtemp(prefix="embedfleet-events-"))
        # a run of the same config into another folder is another run
        run_id = mapping_digest({"run": run.fingerprint, "output": run.output.url})[:32]
        tracked = TrackedRun(run_id, public_config(run.config), self._scratch / "trackers")
        self._trackers = trackers(run.config.tracking, tracked)
        for name in stale([file.name for file in list_folder(self._events)], first_step):
            delete(self._events / name)

    def __call__(self, record: StepMetrics | Evaluated) -> None:
        """Tell of a step or of an evaluation."""
        self._board.show.remote(record)
        if isinstance(record, StepMetrics):
            self._metrics.record(record)
        else:
            self._metrics.evaluated(record.scores)
        for tracker in self._trackers:
            tracker([record])

    def store(self, curve: Curve, first_step: int) -> None:
        """Store what of a run came from `first_step` on as a file of events."""
        stretch = Curve(
            tuple(one for one in curve.steps if one.step >= first_step),
            tuple(one for one in curve.evaluations if one.step > first_step or one.step == first_step == 0),
        )
        file = write_events(stretch, first_step, time.time(), self._scratch)
        upload(file, self._events / file.name)
        file.unlink()

    def close(self, finished: bool) -> None:
        """Tell trackers that the run ends here."""
        for tracker in self._trackers:
            tracker.close(finished)
