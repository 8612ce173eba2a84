"""What a run leaves beside the model: report.json, report.html and the model's card; and whether it is over."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from datetime import UTC, datetime

from jobs.training.identity import public_config
from jobs.training.run import MODEL_FOLDER, TrainRun
from operators.embedder.recipe.files import OWN_RECIPE
from operators.report.training_card import training_card
from operators.report.training_page import training_page
from operators.report.training_text import training_text
from operators.storage import Location, exists, read_bytes, write_whole
from operators.training.data.batch_plan import BatchPlan
from operators.training.record.outcome import Trained, TrainedSet, TrainingOutcome

REPORT, PAGE, CARD = "report.json", "report.html", "README.md"
_VERSIONS = ("ray", "torch", "transformers", "peft", "pyarrow", "embedfleet")


def is_finished(output: Location, fingerprint: str) -> bool:
    """Whether the run was brought to its end, the report is written last, and its model is still there."""
    try:
        found = json.loads(read_bytes(output / REPORT))
    except (FileNotFoundError, ValueError):
        return False
    is_this_run = isinstance(found, dict) and found.get("run") == fingerprint
    return is_this_run and exists(output / MODEL_FOLDER / OWN_RECIPE)


def write_outcome(run: TrainRun, plan: BatchPlan, trained: Trained, started: datetime) -> None:
    """The card, the page and the report, which makes the run finished; and what the user wants to know now."""
    outcome = _outcome(run, plan, trained, started)
    write_whole(run.output / MODEL_FOLDER / CARD, training_card(outcome, run.output.name).encode())
    write_whole(run.output / PAGE, training_page(outcome).encode())
    report = {"run": run.fingerprint, **json.loads(outcome.to_json())}
    write_whole(run.output / REPORT, json.dumps(report, ensure_ascii=False).encode())
    print(training_text(outcome))


def _outcome(run: TrainRun, plan: BatchPlan, trained: Trained, started: datetime) -> TrainingOutcome:
    config, finished = run.config, datetime.now(UTC)
    assert trained.model is not None, "a run without a fault has a model"
    losses = {one.name: run.loss_of(one).model_dump(mode="json", exclude_none=True) for one in config.all_sets}
    return TrainingOutcome(
        started=started.isoformat(timespec="seconds"),
        finished=finished.isoformat(timespec="seconds"),
        seconds=(finished - started).total_seconds(),
        output=str(run.output),
        model=trained.model,
        sets=_sets(run, plan),
        batch_size=config.batch.size,
        num_steps=run.num_steps,
        ended=_why_it_ended(run, trained),
        kept_step=trained.kept_step,
        curve=trained.curve,
        objective=losses,
        optimization=config.optimization.model_dump(mode="json"),
        tuning=config.tuning.model_dump(mode="json") | {"precision": trained.precision},
        seed=config.seed,
        hardware=trained.hardware,
        workers=trained.workers,
        peak_bytes=trained.peak_bytes,
        versions={name: importlib.metadata.version(name) for name in _VERSIONS} | {"python": platform.python_version()},
        config=public_config(config),
        notes=_notes(trained),
    )


def _sets(run: TrainRun, plan: BatchPlan) -> tuple[TrainedSet, ...]:
    return tuple(
        TrainedSet(
            name=prepared.config.name,
            kind=prepared.config.kind,
            path=str(prepared.config.path),
            fingerprint=prepared.manifest.fingerprint,
            objective=run.loss_of(prepared.config).loss,
            train_rows=prepared.manifest.rows("train"),
            dev_rows=prepared.manifest.rows("dev"),
            left_out=plan.num_left_out(index, 0) if index < len(run.sets) else 0,
            counts=prepared.manifest.counts,
        )
        for index, prepared in enumerate(run.prepared)
    )


def _why_it_ended(run: TrainRun, trained: Trained) -> str:
    done = trained.curve.steps[-1].step + 1 if trained.curve.steps else 0
    if done >= run.num_steps:
        return "all steps are done"
    patience = run.evaluation.patience if run.evaluation is not None else None
    return f"no evaluation was better in {patience} in a row"


def _notes(trained: Trained) -> tuple[str, ...]:
    before = next((one for one in trained.curve.evaluations if one.step == 0), None)
    kept = next((one for one in trained.curve.evaluations if one.step == trained.kept_step), None)
    if before is not None and kept is not None and kept.main <= before.main:
        return (f"training did not help: {before.main:.4f} before, {kept.main:.4f} at best",)
    return ()
