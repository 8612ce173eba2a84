"""A training in words: the summary on the terminal, and the tables that page and card share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from operators.report.figures import count, duration, percent, printable, size
from operators.training.record.outcome import TrainingOutcome

SET_HEAD = ("set", "kind", "objective", "train", "dev", "epochs", "left out of one", "skipped", "fingerprint")
SKIPPED_HEAD = ("set", "reason", "rows", "of all", "for example")
SCORE_HEAD = ("score", "before", "after", "difference")
NONE = "–"
_LAST = 0.05  # of the steps: their mean loss is the loss at the end
_MOST_LISTED = 6  # scores on the terminal; page and card have them all


def training_text(outcome: TrainingOutcome) -> str:
    """What was done, what it changed, and where the model is."""
    done = len(outcome.curve.steps)
    lines = [
        f"train done in {duration(outcome.seconds)}: {done:,} of {outcome.num_steps:,} steps, {outcome.ended}",
        f"  rows          {count(outcome.rows)}, {count(outcome.tokens)} tokens",
        f"  speed         {count(outcome.rows_per_second)} rows/s, {count(outcome.tokens_per_second)} tokens/s, "
        f"{outcome.workers} worker{'' if outcome.workers == 1 else 's'}",
        f"  loss          {_number(first_loss(outcome))} at first, {_number(last_loss(outcome))} at the end",
    ]
    lines += [
        f"  skipped       {sum(one.counts.skipped.values()):,} rows of {one.name}: {one.counts}"
        for one in outcome.sets
        if one.counts.skipped
    ]
    rows = score_rows(outcome)
    lines += [
        f"  {name}  {before} -> {after} ({gap})" if gap != NONE else f"  {name}  {after}"
        for name, before, after, gap in rows[:_MOST_LISTED]
    ]
    lines += [f"  note          {note}" for note in outcome.notes]
    lines += [
        f"  model         {outcome.output}/model, after {outcome.kept_step:,} steps",
        f"  report        {outcome.output}/report.html",
    ]
    return "\n".join(map(printable, lines))


def score_rows(outcome: TrainingOutcome) -> list[list[str]]:
    """Every score of the model as it came and of the weights that were kept."""
    before = outcome.before.scores if outcome.before is not None else {}
    after = outcome.after.scores if outcome.after is not None else {}
    rows = []
    for name in dict.fromkeys((*after, *before)):
        pair = before.get(name), after.get(name)
        gap = f"{pair[1] - pair[0]:+.4f}" if pair[0] is not None and pair[1] is not None else NONE
        rows.append([name, *(f"{score:.4f}" if score is not None else NONE for score in pair), gap])
    return rows


def evaluation_rows(outcome: TrainingOutcome) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of all evaluations, the one that was kept marked."""
    names = list(dict.fromkeys(name for one in outcome.curve.evaluations for name in one.scores))
    rows = [
        [
            f"{one.step:,}{' (kept)' if one.step == outcome.kept_step else ''}",
            *(f"{one.scores[name]:.4f}" if name in one.scores else NONE for name in names),
        ]
        for one in outcome.curve.evaluations
    ]
    return ["steps", *names], rows


def set_rows(outcome: TrainingOutcome) -> list[list[str]]:
    """What every set held and how it was used."""
    epochs = outcome.epochs()
    return [
        [
            one.name,
            one.kind,
            one.objective,
            f"{one.train_rows:,}",
            f"{one.dev_rows:,}",
            f"{epochs[one.name]:.2f}",
            f"{one.left_out:,}",
            f"{sum(one.counts.skipped.values()):,}",
            one.fingerprint[:12],
        ]
        for one in outcome.sets
    ]


def skipped_rows(outcome: TrainingOutcome) -> list[list[str]]:
    """Rows that were not used, and texts that were changed, by set and reason."""
    rows = []
    for one in outcome.sets:
        total = max(1, one.counts.read + one.counts.added)
        for reason, num in sorted(one.counts.skipped.items(), key=lambda item: (-item[1], item[0])):
            examples = one.counts.examples.get(reason, ())
            rows.append([one.name, reason, f"{num:,}", percent(num / total), examples[0] if examples else ""])
        for reason, num in sorted(one.counts.changed.items()):
            rows.append([one.name, f"{reason} (kept)", f"{num:,}", percent(num / total), ""])
    return rows


def setting_rows(settings: Mapping[str, Any]) -> list[list[str]]:
    """Settings as rows; what is null is left out."""
    return [[name, _shown(value)] for name, value in settings.items() if value is not None]


def run_facts(outcome: TrainingOutcome) -> dict[str, str]:
    """On what it was trained, and how much."""
    facts = {
        "hardware": f"{outcome.hardware}, {outcome.workers} worker{'' if outcome.workers == 1 else 's'}",
        "steps": f"{len(outcome.curve.steps):,} of {outcome.num_steps:,}, {outcome.ended}",
        "weights kept": f"those after {outcome.kept_step:,} steps",
        "rows of a batch": f"{outcome.batch_size:,}",
        "rows used": f"{outcome.rows:,}",
        "tokens read": f"{outcome.tokens:,}",
        "time": f"{duration(outcome.seconds)}, of it {duration(outcome.step_seconds)} in steps",
        "speed": f"{count(outcome.rows_per_second)} rows/s, {count(outcome.tokens_per_second)} tokens/s",
        "loss": f"{_number(first_loss(outcome))} at first, {_number(last_loss(outcome))} at the end",
        "seed": f"{outcome.seed}",
    }
    if outcome.peak_bytes is not None:
        facts["memory of a worker"] = f"{size(outcome.peak_bytes)} at most"
    return facts


def first_loss(outcome: TrainingOutcome) -> float:
    """The mean loss of the first twentieth of the steps."""
    return _mean([step.loss for step in outcome.curve.steps[: _num_last(outcome)]])


def last_loss(outcome: TrainingOutcome) -> float:
    """The mean loss of the last twentieth of the steps."""
    return _mean([step.loss for step in outcome.curve.steps[-_num_last(outcome) :]])


def _num_last(outcome: TrainingOutcome) -> int:
    return max(1, round(_LAST * len(outcome.curve.steps)))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _number(value: float) -> str:
    return f"{value:.4g}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
