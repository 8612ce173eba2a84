"""Whole steps: the same on any number of ranks, in any number of passes, and when a run goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from operators.errors import InputError
from operators.training.config.tuning import Lora, Tuning
from operators.training.steps import state
from operators.training.steps.step import TrainingDiverged
from tests.checkpoints import tiny_bert
from tests.ranks import run_ranks
from tests.training_steps import FOLDER, KINDS, NUM_STEPS, TUNING, make_step, steps_on_this_rank, write_sets


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_bert(tmp_path / "model", hidden=16)
    write_sets(tmp_path)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "tuning",
    [
        pytest.param(Tuning(precision="float32"), id="whole"),
        pytest.param(
            Tuning(precision="float32", sharding="fsdp2", gradient_checkpointing=True),
            id="sharded",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Tuning(precision="float32", sharding="fsdp2", lora=Lora(rank=4, dropout=0.0)),
            id="sharded-lora",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_several_ranks_are_one(folder: Path, tuning: Tuning, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TUNING, tuning.model_copy(update={"sharding": "none"}).model_dump_json())
    alone = steps_on_this_rank()
    assert set(alone["sets"]) == set(KINDS)
    monkeypatch.setenv(TUNING, tuning.model_dump_json())
    for rank in run_ranks(world_size, steps_on_this_rank, folder):
        assert (rank["sets"], rank["tokens"]) == (alone["sets"], alone["tokens"])
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert rank["losses"][0] == pytest.approx(alone["losses"][0], rel=1e-5)
        assert rank["norms"] == pytest.approx(alone["norms"], rel=1e-3)
        assert rank["norms"][0] == pytest.approx(alone["norms"][0], rel=1e-5)
        for name, weight in rank["weights"].items():
            if name.endswith("key.bias"):
                continue  # a softmax does not see it: its gradient is rounding, which AdamW scales up
            torch.testing.assert_close(weight, alone["weights"][name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_in_many_passes_is_the_step(folder: Path, dropout: float) -> None:
    """With dropout too: what is drawn belongs to a pass, not to how many of them keep their graph."""
    kept_all, batches = make_step(folder, tokens=100_000, dropout=dropout)
    kept_one, _ = make_step(folder, tokens=128, dropout=dropout)
    kept_all_passes, kept_one_passes = [], []
    for batch in batches(0, 6):
        kept_all_passes.append(kept_all(batch))
        kept_one_passes.append(kept_one(batch))
    for one, other in zip(kept_all_passes, kept_one_passes, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["whole", "lora"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_computed_again_are_the_same_to_the_bit(folder: Path, lora: Lora | None, precision: Any) -> None:
    """With dropout, in many passes, some of which are encoded twice anyway."""
    kept, batches = make_step(folder, tokens=256, dropout=0.1, tuning=Tuning(lora=lora, precision=precision))
    again, _ = make_step(
        folder, tokens=256, dropout=0.1, tuning=Tuning(lora=lora, precision=precision, gradient_checkpointing=True)
    )
    for batch in batches(0, 4):
        one, other = kept(batch), again(batch)
        assert (one.loss, one.gradient_norm) == (other.loss, other.gradient_norm)
    for name, parameter in kept.parameters.items():
        assert torch.equal(parameter, again.parameters[name]), name


def test_a_run_that_goes_on_is_the_run_to_the_bit(folder: Path) -> None:
    whole, batches = make_step(folder, dropout=0.1)
    expected = [whole(batch).loss for batch in batches(0, NUM_STEPS)]
    half, batches = make_step(folder, dropout=0.1)
    losses = [half(batch).loss for batch in batches(0, 6)]
    state.save(folder / "state", half.parameters, half.optimizer, state.Progress(6, "run"))
    rest, batches = make_step(folder, dropout=0.1)
    assert state.load(folder / "state", rest.parameters, rest.optimizer, "run").step == 6
    losses += [rest(batch).loss for batch in batches(6, NUM_STEPS)]
    assert losses == expected


def test_a_diverging_run_stops_and_says_where(folder: Path) -> None:
    step, batches = make_step(folder)
    for batch in batches(0, 3):
        step(batch)
    with torch.no_grad():
        next(iter(step.parameters.values())).fill_(math.inf)
    bad = batches.read(3)
    before = [parameter.detach().clone() for parameter in step.parameters.values()]
    with pytest.raises(TrainingDiverged, match=r"lower optimization.learning_rate.*step 3 .*loss of the set '") as info:
        step(bad)
    assert info.value.planned.step == 3
    for parameter, value in zip(step.parameters.values(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None


def test_more_ranks_than_rows_are_refused(folder: Path) -> None:
    _, batches = make_step(folder)
    many = type(batches)(batches._plan, batches._sets, 0, 64, 128)
    with pytest.raises(InputError, match=r"larger batch.size or fewer workers: the batch of step 0 has \d rows for 64"):
        many.read(0)
