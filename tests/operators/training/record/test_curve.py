"""The records of a run and their file."""

from __future__ import annotations

import json
import math
import random

import pytest

from operators.errors import InputError
from operators.training.record.curve import Curve, Evaluated, StepMetrics


def _step(step: int, loss: float = 1.0, name: str = "pairs") -> StepMetrics:
    return StepMetrics(step, name, 0, loss, 2e-5, 0.5, 64, 4096, 0.5)


def _curve() -> Curve:
    draw = random.Random(3)
    steps = [_step(i, draw.gauss(1, 0.3), f"set\u2028{i % 2}") for i in range(6)]
    return Curve().plus(Evaluated(0, {"ndcg": 0.4, "loss": 2.0}), *steps, Evaluated(3, {"ndcg": 0.6}))


def test_jsonl_gives_back_every_bit_of_a_curve() -> None:
    curve = _curve()
    text = curve.to_jsonl()
    assert Curve.from_jsonl(text) == curve
    assert [json.loads(line)["step"] for line in text.split("\n")[:-1]] == [0, 0, 1, 2, 3, 3, 4, 5]
    assert list(Curve.from_jsonl(text).evaluations[0].scores) == ["ndcg", "loss"]


def test_jsonl_keeps_a_loss_that_is_no_number() -> None:
    text = Curve().plus(_step(0, math.nan), _step(1, math.inf)).to_jsonl()
    losses = [one.loss for one in Curve.from_jsonl(text).steps]
    assert math.isnan(losses[0])
    assert losses[1] == math.inf


def test_cut_leaves_the_curve_of_the_checkpoint_and_the_run_goes_on_as_if_never_stopped() -> None:
    whole = _curve()
    resumed = whole.cut(3)
    assert [one.step for one in resumed.steps] == [0, 1, 2]
    assert [one.step for one in resumed.evaluations] == [0, 3]
    assert resumed.plus(*whole.steps[3:]) == whole
    assert whole.cut(2).evaluations == whole.evaluations[:1]


def test_best_is_the_first_of_the_largest_main_scores() -> None:
    curve = Curve().plus(
        Evaluated(0, {"a": 0.1, "b": 9.0}), Evaluated(5, {"a": 0.7, "b": 0.0}), Evaluated(9, {"a": 0.7, "b": 1.0})
    )
    assert curve.best == curve.evaluations[1]
    assert Curve().best is None


def test_a_step_that_is_there_already_is_refused() -> None:
    with pytest.raises(AssertionError, match="comes once"):
        _curve().plus(_step(5))


def test_rates_are_over_the_time_of_the_step() -> None:
    assert (_step(0).rows_per_second, _step(0).tokens_per_second) == (128, 8192)


@pytest.mark.parametrize(
    "line", ['{"step": 1, "scores": {"a": "b"}}', '{"step": 1, "scores": {}}', '{"step": 2, "sco', "[]"]
)
def test_a_damaged_line_is_named(line: str) -> None:
    with pytest.raises(InputError, match=r"remove run/curve.jsonl: line 9 is no record"):
        Curve.from_jsonl(_curve().to_jsonl() + line, "run/curve.jsonl")
