"""What a training did, as one record: the report and the card of the model are made of it."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from operators.training.data.counts import RowCounts
from operators.training.record.curve import Curve, Evaluated, StepMetrics


@dataclass(frozen=True, slots=True)
class TrainedSet:
    """A data set of a training, and what of it was used."""

    name: str
    kind: str
    path: str
    fingerprint: str
    objective: str  # such as info_nce
    train_rows: int
    dev_rows: int
    left_out: int  # rows of an epoch that would have repeated a text in every batch left
    counts: RowCounts


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What was trained, and as what it loads."""

    base: str  # as the config names it
    base_fingerprint: str
    fingerprint: str  # of the vectors that the trained model makes
    dim: int
    max_tokens: int
    pooling: str
    normalized: bool
    prompts: Mapping[str, str]  # by role
    num_parameters: int
    num_trained: int
    in_sentence_transformers: bool  # whether SentenceTransformer(...) loads it, beside our own recipe


@dataclass(frozen=True, slots=True)
class Trained:
    """What the workers of a run came to; `fault` says why they came to nothing.

    It is here, where neither torch nor transformers is imported, because Ray Train's controller unpickles it: 4 s.
    """

    curve: Curve
    kept_step: int = 0  # the model's weights are those after so many steps
    fault: str | None = None
    model: TrainedModel | None = None
    peak_bytes: int | None = None
    workers: int = 1
    precision: str = ""  # what the config's came to on the workers' hardware
    hardware: str = platform.machine()


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """One run of the job `train`; nothing in it is secret (`config` comes redacted)."""

    started: str  # ISO 8601, UTC
    finished: str
    seconds: float
    output: str  # the run's folder
    model: TrainedModel
    sets: tuple[TrainedSet, ...]
    batch_size: int
    num_steps: int  # planned
    ended: str  # why there were no more steps, in words
    kept_step: int  # the weights that were exported are those after so many steps
    curve: Curve
    objective: Mapping[str, Any]  # settings of the losses
    optimization: Mapping[str, Any]
    tuning: Mapping[str, Any]
    seed: int
    hardware: str
    workers: int
    peak_bytes: int | None = None  # most memory that a worker had at once; of a GPU its own
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def before(self) -> Evaluated | None:
        """The scores of the model as it came; None where it was not evaluated."""
        return next((one for one in self.curve.evaluations if one.step == 0), None)

    @property
    def after(self) -> Evaluated | None:
        """The scores of the weights that were kept; None where they were not evaluated."""
        return next((one for one in self.curve.evaluations if one.step == self.kept_step), None)

    @property
    def rows(self) -> int:
        """Rows used, each as often as it came."""
        return sum(step.rows for step in self.curve.steps)

    @property
    def tokens(self) -> int:
        """Tokens read by the model, padding and second forward passes not counted."""
        return sum(step.tokens for step in self.curve.steps)

    @property
    def step_seconds(self) -> float:
        """Time in steps, without that of preparing, loading and evaluating."""
        return sum(step.seconds for step in self.curve.steps)

    @property
    def rows_per_second(self) -> float:
        """Rows over the time in steps."""
        return self.rows / self.step_seconds if self.step_seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Real tokens over the time in steps."""
        return self.tokens / self.step_seconds if self.step_seconds > 0 else 0.0

    def epochs(self) -> dict[str, float]:
        """How often each set was gone through, by its name."""
        used: Counter[str] = Counter()
        for step in self.curve.steps:
            used[step.set] += step.rows
        return {one.name: used[one.name] / one.train_rows if one.train_rows else 0.0 for one in self.sets}

    def to_json(self) -> str:
        """The record as JSON, with the figures that follow from others; steps by column, since there are many."""
        names = [one.name for one in dataclasses.fields(StepMetrics)]
        steps = {name: [getattr(step, name) for step in self.curve.steps] for name in names}
        evaluations = [{"step": one.step, "scores": dict(one.scores)} for one in self.curve.evaluations]
        derived = {
            "rows": self.rows,
            "tokens": self.tokens,
            "rows_per_second": self.rows_per_second,
            "tokens_per_second": self.tokens_per_second,
            "epochs": self.epochs(),
            "before": dict(self.before.scores) if self.before is not None else None,
            "after": dict(self.after.scores) if self.after is not None else None,
        }
        stored = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        curve = {"curve": {"steps": steps, "evaluations": evaluations}}
        return json.dumps({**stored, **derived, **curve}, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, RowCounts):
        return value.model_dump()
    assert dataclasses.is_dataclass(value), f"a record, not {value!r}"
    assert not isinstance(value, type), "a record, not its class"
    return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
