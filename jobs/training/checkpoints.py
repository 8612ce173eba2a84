"""A worker's state on storage: put there by Ray Train's uploads while training goes on, and found again afterwards.

    checkpoints/step-00000100/{weights,optimizer}*.safetensors, curve.jsonl, progress.json (written last)

What a run goes on from is the newest state that reads, whether Ray Train came to take note of it or not: its list is
written in place, and it does not start with one that names a checkpoint which is gone. So we also remove old states.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

from jobs.training.board import final_faults_told
from jobs.training.run import CHECKPOINTS, TrainRun
from operators.errors import InputError
from operators.storage import Location, delete, delete_folder, download, iter_files, list_folder, upload
from operators.training.record.curve import Curve
from operators.training.steps import state
from operators.training.steps.state import DamagedState
from operators.training.steps.step import TrainStep

_CURVE = "curve.jsonl"
_SNAPSHOT = "checkpoint_manager_snapshot.json"


def report_checkpoint(
    run: TrainRun, step: TrainStep, curve: Curve, done: int, is_first_rank: bool, last: bool, board: Any
) -> None:
    """Hand the state after `done` steps to Ray Train; every rank calls it.

    Stored are the first one's files, and those of all ranks, in one folder, where each has a part of the model.

    The last one is on storage when this returns, for the model is made of stored weights.
    """
    checkpoint = None
    if is_first_rank or step.encoder.is_sharded:
        folder = Path(tempfile.mkdtemp(prefix="embedfleet-state-"))
        state.save(folder, step.parameters, step.optimizer, state.Progress(done, run.fingerprint))
        if is_first_rank:
            (folder / _CURVE).write_text(curve.to_jsonl(), encoding="utf-8")
        checkpoint = Checkpoint.from_directory(folder)
    storage = ray.train.get_context().get_storage()

    def store(local: Checkpoint, name: str) -> Checkpoint:
        with final_faults_told(board):
            _store(Path(local.path), _states(run) / name)
            if is_first_rank:  # whose part may be stored before those of others are
                _remove_old(run, curve, max(run.config.checkpoints.keep, 2 if step.encoder.is_sharded else 1))
        return Checkpoint(storage.build_checkpoint_path_from_name(name), storage.storage_filesystem)

    ray.train.report(
        {"step": done},
        checkpoint=checkpoint,
        checkpoint_dir_name=_folder_name(done),
        checkpoint_upload_mode=CheckpointUploadMode.SYNC if last else CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
        checkpoint_upload_fn=store,
    )


def restore(run: TrainRun, step: TrainStep, board: Any) -> tuple[int, Curve]:
    """Put the newest state that reads in place; the step to go on with, and the curve before it."""
    damaged: list[str] = []
    for place in _stored(run):
        try:
            with _on_this_machine(place) as folder:
                curve = _curve(folder / _CURVE)
                progress = state.load(folder, step.parameters, step.optimizer, run.fingerprint)
        except DamagedState as error:
            damaged.append(f"{place}: {error}")
            continue
        for one in damaged:
            board.show.remote(f"going on from step {progress.step:,}, for the state after it is damaged: {one}")
        return progress.step, curve.cut(progress.step)
    if damaged:
        raise InputError(f"remove {_states(run)} to train anew: no state in it reads\n" + "\n".join(damaged))
    return 0, Curve()


def load_weights(run: TrainRun, parameters: state.Parameters, done: int) -> None:
    """Put the weights in place that were stored after `done` steps."""
    stored = _states(run) / _folder_name(done)
    with tempfile.TemporaryDirectory(prefix="embedfleet-state-") as name:
        folder = Path(name)
        try:
            download(stored / state.PROGRESS, folder / state.PROGRESS)
            for file in state.read_progress(folder).weight_files:
                download(stored / file, folder / file)
            state.load_weights(folder, parameters)
        except (FileNotFoundError, DamagedState) as error:
            raise InputError(f"remove {_states(run)} to train anew: the best weights are damaged: {error}") from None


def forget_snapshot(run: TrainRun) -> None:
    """Remove Ray Train's list of checkpoints of an earlier command; it would not start where one of them is gone."""
    delete(_states(run) / _SNAPSHOT)


def best_trained(curve: Curve) -> int | None:
    """The step of the best evaluation of weights that were trained; None without any."""
    best = Curve(evaluations=tuple(one for one in curve.evaluations if one.step)).best
    return None if best is None else best.step


def _store(folder: Path, place: Location) -> None:
    """Upload a state so that it is seen whole or not at all, in place of a damaged one too; or a rank's part of it."""
    if (folder / state.PROGRESS).exists():
        delete(place / state.PROGRESS)
    files = sorted(folder.iterdir(), key=lambda file: (file.name == state.PROGRESS, file.name))
    for file in files:
        upload(file, place / file.name)


def _remove_old(run: TrainRun, curve: Curve, keep: int) -> None:
    """Keep the newest states and the best one, with which a run goes on and ends."""
    best = best_trained(curve)
    for place in _stored(run)[keep:]:
        if best is None or place.name != _folder_name(best):
            delete(place / state.PROGRESS)  # from now on nobody takes it for a state
            delete_folder(place)


def _stored(run: TrainRun) -> list[Location]:
    """The folders of all states that were written to their end, the newest first."""
    ends = (file.url for file in iter_files(_states(run)) if file.name == state.PROGRESS)
    folders = sorted((url.rsplit("/", 1)[0] for url in ends), reverse=True)
    return [Location(url, run.output.options) for url in folders]


@contextmanager
def _on_this_machine(place: Location) -> Iterator[Path]:
    if place.is_local:
        yield Path(place.path)
        return
    with tempfile.TemporaryDirectory(prefix="embedfleet-state-") as folder:
        for file in list_folder(place):
            download(place / file.name, Path(folder) / file.name)
        yield Path(folder)


def _curve(file: Path) -> Curve:
    try:
        return Curve.from_jsonl(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedState(f"{file.name} does not read: {error}") from None


def _states(run: TrainRun) -> Location:
    return run.output / CHECKPOINTS


def _folder_name(done: int) -> str:
    return f"step-{done:08d}"
