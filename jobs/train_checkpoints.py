"""A worker's state in Ray Train's hands: stored while training goes on, and found again after a failure."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

from jobs.train_run import CHECKPOINTS, TrainRun
from operators.storage import download
from operators.training import state
from operators.training.curve import Curve
from operators.training.step import TrainStep

_CURVE = "curve.jsonl"


def report_checkpoint(run: TrainRun, step: TrainStep, curve: Curve, done: int, is_first_rank: bool, last: bool) -> None:
    """Hand the state after `done` steps to Ray Train; every rank calls it, the first one's files are stored.

    The last one is on storage when this returns, for the model is made of stored weights.
    """
    checkpoint = None
    if is_first_rank:
        folder = Path(tempfile.mkdtemp(prefix="embedfleet-state-"))
        state.save(folder, step.parameters, step.optimizer, state.Progress(done, run.fingerprint))
        (folder / _CURVE).write_text(curve.to_jsonl(), encoding="utf-8")
        checkpoint = Checkpoint.from_directory(folder)
    # what was not evaluated is never the best; without evaluations the last ones are kept
    evaluated = {one.step: one.main for one in curve.evaluations}
    ray.train.report(
        {"step": done, "score": evaluated.get(done, float("-inf"))},
        checkpoint=checkpoint,
        checkpoint_dir_name=_folder_name(done),
        checkpoint_upload_mode=CheckpointUploadMode.SYNC if last else CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


def restore(run: TrainRun, step: TrainStep) -> tuple[int, Curve]:
    """Put the newest stored state in place; the step to go on with, and the curve before it."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, Curve()
    with checkpoint.as_directory() as folder:
        progress = state.load(Path(folder), step.parameters, step.optimizer, run.fingerprint)
        curve = Curve.from_jsonl((Path(folder) / _CURVE).read_text(encoding="utf-8"), f"{folder}/{_CURVE}")
    return progress.step, curve.cut(progress.step)


def load_weights(run: TrainRun, step: TrainStep, done: int) -> None:
    """Put the weights in place that were stored after `done` steps."""
    stored = run.output / CHECKPOINTS / _folder_name(done) / state.WEIGHTS
    with tempfile.TemporaryDirectory(prefix="embedfleet-state-") as folder:
        file = Path(folder) / state.WEIGHTS
        download(stored, file)
        state.load_weights(file, step.parameters)


def _folder_name(done: int) -> str:
    return f"step-{done:08d}"
