"""What a run measured of itself, step by step: the records, and their file.

    {"step": 7, "set": "medquad", "epoch": 0, "loss": 1.25, ...}     one optimisation step
    {"step": 100, "scores": {"medquad ndcg_at_10": 0.61, ...}}       one evaluation

A checkpoint holds the curve up to its step, so that a run which goes on from it goes on with its curve as well.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import pydantic

from operators.errors import InputError


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimisation step, of all ranks together."""

    step: int  # counted from 0
    set: str
    epoch: int  # of the set, counted from 0
    loss: float  # mean over the rows of the step
    learning_rate: float
    gradient_norm: float  # before it was clipped
    rows: int
    tokens: int  # read by the model, padding and second forward passes not counted
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Rows of the sets over the time of the step."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Real tokens over the time of the step."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The scores of the weights after `step` steps; 0: of the model as it came."""

    step: int
    scores: Mapping[str, float]  # the main score first; more is better

    def __post_init__(self) -> None:
        assert self.scores, "an evaluation has a score"

    @property
    def main(self) -> float:
        """The score by which checkpoints are compared."""
        return next(iter(self.scores.values()))


@dataclass(frozen=True, slots=True)
class Curve:
    """A run so far: steps and evaluations, each in order and none twice."""

    steps: tuple[StepMetrics, ...] = ()
    evaluations: tuple[Evaluated, ...] = ()

    @property
    def best(self) -> Evaluated | None:
        """The evaluation with the largest main score, the first of equals."""
        return max(self.evaluations, key=lambda one: one.main, default=None)

    def plus(self, *records: StepMetrics | Evaluated) -> Curve:
        """The curve with records after its last ones; it copies itself once for all of them."""
        steps = [*self.steps, *(one for one in records if isinstance(one, StepMetrics))]
        evaluations = [*self.evaluations, *(one for one in records if isinstance(one, Evaluated))]
        for places in ([one.step for one in steps], [one.step for one in evaluations]):
            assert all(a < b for a, b in itertools.pairwise(places)), "a step comes once, and in order"
        return Curve(tuple(steps), tuple(evaluations))

    def cut(self, step: int) -> Curve:
        """The curve when `step` was the next step: what a run has that goes on from a checkpoint of that step.

        The evaluation after `step` steps is of the same weights, and stays.
        """
        return Curve(
            tuple(one for one in self.steps if one.step < step),
            tuple(one for one in self.evaluations if one.step <= step),
        )

    def to_jsonl(self) -> str:
        """One line a record, by step, an evaluation before the step that follows it; floats keep every bit."""
        records: list[StepMetrics | Evaluated] = [*self.evaluations, *self.steps]
        records.sort(key=lambda one: one.step)  # stable: evaluations first
        return "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in records)

    @staticmethod
    def from_jsonl(text: str, name: str = "curve.jsonl") -> Curve:
        """The curve that `to_jsonl` wrote. Raises InputError naming the file (`name`) and the line that is wrong."""
        return Curve().plus(*_records(text, name))


def _records(text: str, name: str) -> Iterator[StepMetrics | Evaluated]:
    # Not `splitlines`: a name of a set may hold U+2028, which JSON leaves as it is.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            continue
        try:
            yield _LINE.validate_json(line)
        except pydantic.ValidationError as error:
            fault = error.errors()[0]
            raise InputError(
                f"remove {name}: line {number} is no record of a step or an evaluation ({fault['msg']})"
            ) from None


_LINE: pydantic.TypeAdapter[StepMetrics | Evaluated] = pydantic.TypeAdapter(StepMetrics | Evaluated)
