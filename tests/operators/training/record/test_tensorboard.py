"""TensorBoard's event files of a run, read back record by record."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from operators.training.record.curve import Curve, Evaluated, StepMetrics
from operators.training.record.tensorboard import stale, write_events

_ENDED = 1_700_000_000.0


def _steps(first: int, last: int, loss: float = 1.0) -> list[StepMetrics]:
    return [StepMetrics(i, "pairs", 0, loss / (i + 1), 2e-5, 0.5, 64, 4096, 0.5) for i in range(first, last)]


def _events(file: Path) -> list[event_pb2.Event]:
    """TFRecord: length (8 bytes), its checksum (4), the record, its checksum (4)."""
    content, found, place = file.read_bytes(), [], 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        found.append(event_pb2.Event.FromString(content[place + 12 : place + 12 + length]))
        place += 16 + length
    return found


def _shown(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: files in the order of their names, later steps forgotten at each mark of a start."""
    shown: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir()):
        for event in _events(file):
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = {tag: {s: v for s, v in at.items() if s < event.step} for tag, at in shown.items()}
            for value in event.summary.value:
                assert event.step not in shown.get(value.tag, {}), "no step twice"
                shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


def test_every_step_and_evaluation_is_shown_once(tmp_path: Path) -> None:
    write_events(
        Curve().plus(Evaluated(0, {"ndcg": 0.5}), *_steps(0, 4), Evaluated(4, {"ndcg": 0.7})), 0, _ENDED, tmp_path
    )
    write_events(Curve().plus(*_steps(4, 6), Evaluated(6, {"ndcg": 0.6})), 4, _ENDED + 1, tmp_path)
    shown = _shown(tmp_path)
    assert shown["train/loss"] == pytest.approx({i + 1: 1 / (i + 1) for i in range(6)})
    assert shown["loss/pairs"] == shown["train/loss"]
    assert shown["evaluation/ndcg"] == pytest.approx({0: 0.5, 4: 0.7, 6: 0.6})
    assert set(shown["train/tokens_per_second"].values()) == {8192}


def test_a_run_that_goes_on_from_an_older_checkpoint_shows_no_step_twice(tmp_path: Path) -> None:
    for first, last in ((0, 4), (4, 8), (8, 10)):
        write_events(Curve().plus(*_steps(first, last), Evaluated(last, {"ndcg": 0.1})), first, _ENDED, tmp_path)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert stale([*names, "notes.txt"], 4) == tuple(names[1:])
    for name in stale(names, 4):
        (tmp_path / name).unlink()
    write_events(Curve().plus(*_steps(4, 7, loss=2.0), Evaluated(7, {"ndcg": 0.2})), 4, _ENDED, tmp_path)
    shown = _shown(tmp_path)
    assert shown["train/loss"] == pytest.approx({i + 1: (1 if i < 4 else 2) / (i + 1) for i in range(7)})
    assert shown["evaluation/ndcg"] == pytest.approx({4: 0.1, 7: 0.2})


def test_times_follow_from_the_seconds_of_the_steps(tmp_path: Path) -> None:
    stretch = Curve().plus(Evaluated(0, {"ndcg": 0.5}), *_steps(0, 3), Evaluated(3, {"ndcg": 0.5}))
    events = _events(write_events(stretch, 0, _ENDED, tmp_path))
    assert events[0].file_version == "brain.Event:2"
    times = [(event.step, event.wall_time - _ENDED) for event in events[2:]]
    assert times == [(0, -1.5), (1, -1.0), (2, -0.5), (3, 0.0), (3, 0.0)]


def test_a_stretch_without_steps_is_a_file_that_reads(tmp_path: Path) -> None:
    assert len(_events(write_events(Curve(), 3, _ENDED, tmp_path / "new"))) == 2
