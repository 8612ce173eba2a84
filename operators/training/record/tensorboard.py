"""A run as TensorBoard's event files: one for each stretch of the run, since storage cannot append.

    FOLDER/events.out.tfevents.000000000100.train       what came after 100 steps were done

A stretch is what a run did between two checkpoints. A run that goes on from a checkpoint writes the stretches after it
anew, under the same names; those that it will not write are named by `stale`. Each file begins with the session mark by
which TensorBoard forgets what it read of later steps, so that no step is shown twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from operators.training.record.curve import Curve, Evaluated, StepMetrics
from operators.training.record.tracking import scalars, steps_done

_PREFIX, _SUFFIX = "events.out.tfevents.", ".train"  # TensorBoard goes by what is before the number
_VERSION = "brain.Event:2"


def write_events(stretch: Curve, first_step: int, ended: float, folder: Path) -> Path:
    """Write what a run did from `first_step` on to a file in `folder`, which is made.

    ended: Unix time in seconds of the last step; that of the others follows from their seconds.
    """
    from tensorboardX.proto import event_pb2  # with its package it takes a second to import
    from tensorboardX.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{_PREFIX}{first_step:012d}{_SUFFIX}"
    writer = RecordWriter(str(file))
    try:
        for event in _events(event_pb2, stretch, first_step, ended):
            writer.write(event.SerializeToString())
    finally:
        writer.close()
    return file


def stale(names: Iterable[str], step: int) -> tuple[str, ...]:
    """Those event files that a run has to remove which goes on at `step`: they hold steps that it does again."""
    ours = [name for name in names if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]
    return tuple(name for name in ours if int(name[len(_PREFIX) : -len(_SUFFIX)]) >= step)


def _events(proto: Any, stretch: Curve, first_step: int, ended: float) -> Iterator[Any]:
    began = ended - sum(one.seconds for one in stretch.steps)
    yield proto.Event(wall_time=began, file_version=_VERSION)
    # +1: the evaluation after `first_step` steps is of the stretch before, and stays
    mark = proto.SessionLog(status=proto.SessionLog.START)
    yield proto.Event(wall_time=began, step=first_step + 1, session_log=mark)
    ends = itertools.accumulate((one.seconds for one in stretch.steps), initial=began)
    times = dict(zip((first_step, *map(steps_done, stretch.steps)), ends, strict=True))
    records: list[StepMetrics | Evaluated] = [*stretch.steps, *stretch.evaluations]
    for record in sorted(records, key=steps_done):  # stable: a step before the evaluation after it
        done = steps_done(record)
        event = proto.Event(wall_time=times[done], step=done)
        for name, value in scalars(record).items():
            event.summary.value.add(tag=name, simple_value=value)
        yield event
