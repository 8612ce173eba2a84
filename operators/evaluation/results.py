"""What an evaluation found, as records: scores with intervals, what they cost, and how models differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from operators.evaluation.contamination import Contamination
from operators.evaluation.outcome import Outcome
from operators.evaluation.statistics import Bounds, Difference, Resampling, compare, intervals
from operators.evaluation.tasks import Task

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A model's scores on a task."""

    kind: str
    main_metric: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, Bounds]
    items: str
    num_items: int
    notes: tuple[str, ...] = ()

    @property
    def main_score(self) -> float:
        """The metric that stands for the task."""
        return self.metrics[self.main_metric]


@dataclass(frozen=True, slots=True)
class ModelResult:
    """A model with its scores; what only an embedder has is None for BM25."""

    name: str
    model: str
    tasks: Mapping[str, TaskResult]
    dim: int | None = None
    max_tokens: int | None = None
    fingerprint: str | None = None
    bytes_per_vector: Mapping[str, int] = field(default_factory=dict)  # by the dtype of an embeddings dataset
    tokens_per_second: float | None = None  # measured in this run, all workers, loading not counted
    workers: int | None = None
    tokens_per_document: float | None = None
    usd_per_million_documents: float | None = None
    notes: tuple[str, ...] = ()

    def mean_score(self, tasks: Sequence[str]) -> float:
        """The mean of some tasks' main scores."""
        return sum(self.tasks[name].main_score for name in tasks) / len(tasks)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model against the first one, on one task: positive values say that it is better."""

    model: str
    against: str
    task: str
    metric: str
    difference: Difference


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One run of the job `evaluate`."""

    started: str  # ISO 8601, UTC
    seconds: float
    confidence: float
    models: tuple[ModelResult, ...]
    comparisons: tuple[Comparison, ...]
    contamination: tuple[Contamination, ...]
    hardware: str
    versions: Mapping[str, str]
    config: Mapping[str, Any]

    @property
    def shared_tasks(self) -> tuple[str, ...]:
        """The tasks that every model has a score of."""
        return tuple(name for name in self.models[0].tasks if all(name in model.tasks for model in self.models))


def task_result(task: Task, outcome: Outcome, resampling: Resampling) -> TaskResult:
    """An outcome with its intervals."""
    return TaskResult(
        task.kind,
        task.main_metric,
        dict(outcome.metrics),
        intervals(outcome, resampling),
        outcome.items,
        outcome.num_items,
        outcome.notes,
    )


def comparisons(
    tasks: Sequence[Task], outcomes: Mapping[str, Mapping[str, Outcome]], resampling: Resampling
) -> tuple[Comparison, ...]:
    """Every model against the first, on the tasks that both have; `outcomes` are by model and task."""
    first, *others = outcomes
    found = []
    for other in others:
        for task in tasks:
            pair = [outcomes[name].get(task.name) for name in (first, other)]
            if pair[0] is None or pair[1] is None:
                continue
            for metric, difference in compare(pair[0], pair[1], resampling).items():
                found.append(Comparison(other, first, task.name, metric, difference))
    return tuple(found)


def scores_json(evaluation: Evaluation, several: bool) -> str:
    """{task: {metric: value}} of one model; {model: {task: {metric: value}}} where several were asked for."""
    scores = {m.name: {name: dict(task.metrics) for name, task in m.tasks.items()} for m in evaluation.models}
    content: Any = scores if several else scores[evaluation.models[0].name]
    return json.dumps(content, indent=1, allow_nan=False)


def report_json(evaluation: Evaluation) -> str:
    """Everything that was found."""
    return json.dumps(dataclasses.asdict(evaluation), indent=1)


def missed_gates(tasks: Sequence[Task], models: Sequence[ModelResult]) -> list[str]:
    """What fell short of a task's `at_least`, in words; the lexical baseline is not held to it beside an embedder."""
    embedders = [model for model in models if model.dim is not None]
    return [
        f"{model.name} on {task.name}: {metric} {model.tasks[task.name].metrics.get(metric, float('nan')):.4f}, "
        f"at_least wants {least:g}"
        for model in embedders or models
        for task in tasks
        for metric, least in task.at_least.items()
        if task.name in model.tasks and not model.tasks[task.name].metrics.get(metric, float("nan")) >= least
    ]
