"""A model in parts: what ranks have of it, what they store, and that nothing but memory changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from operators.errors import InputError
from operators.training.config.tuning import Tuning
from operators.training.model.sharding import clip_gradients
from operators.training.steps import state
from tests.checkpoints import tiny_bert
from tests.ranks import run_ranks
from tests.sharded_steps import RUN, SHARDED, STOPS, embedded, first_steps, half_losses, more_steps, uneven_texts
from tests.training_steps import FOLDER, make_step, write_sets


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_bert(tmp_path / "model", hidden=16)
    write_sets(tmp_path)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_a_run_in_parts_goes_on_in_other_parts_and_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, batches = make_step(folder, tokens=512)
    expected = [whole(batch).loss for batch in batches(0, STOPS[0])]
    vectors = [embedded(whole.encoder, texts) for texts in uneven_texts()]
    expected += [whole(batch).loss for batch in batches(STOPS[0], STOPS[2])]

    ranks = run_ranks(2, first_steps, folder)
    assert sum(rank["own"] for rank in ranks) == ranks[0]["all"]
    assert max(rank["own"] for rank in ranks) < 0.55 * ranks[0]["all"]
    for rank in ranks:
        assert rank["losses"] == pytest.approx(expected[: STOPS[0]], rel=1e-4)
        for found, alone in zip(rank["vectors"], vectors, strict=True):
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-4)
    assert ranks[1]["turns"] == ["0 begins", "0 ends", "1 begins", "1 ends"]

    second = safetensors.torch.load_file(folder / "first" / "weights-0002-of-0002.safetensors")
    assert not [name for name in second if name.startswith("objectives.")], "whole on every rank: stored once"
    for rank in run_ranks(3, more_steps, folder):
        assert rank == pytest.approx(expected[STOPS[0] : STOPS[1]], rel=1e-4)
    alone, batches = make_step(folder, tokens=512)
    assert state.load(folder / "second", alone.parameters, alone.optimizer, RUN).shards == 3
    losses = [alone(batch).loss for batch in batches(STOPS[1], STOPS[2])]
    assert losses == pytest.approx(expected[STOPS[1] :], rel=1e-4)
    for name, parameter in alone.parameters.items():
        if not name.endswith("key.bias"):  # see test_step
            torch.testing.assert_close(parameter, whole.parameters[name], rtol=0, atol=1e-4, msg=name)

    monkeypatch.setattr("tests.sharded_steps.SHARDED", Tuning(precision="float32"))
    assert ranks[0]["half"] == pytest.approx(half_losses(folder), rel=0.03)


def test_a_missing_part_is_told(folder: Path) -> None:
    step, batches = make_step(folder)
    step(batches.read(0))
    state.save(folder / "state", step.parameters, step.optimizer, state.Progress(1, RUN))
    progress = folder / "state" / state.PROGRESS
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "shards": 2}))
    for kind in ("weights", "optimizer"):
        (folder / "state" / f"{kind}.safetensors").rename(folder / "state" / f"{kind}-0001-of-0002.safetensors")
    with pytest.raises(InputError, match="does not read"):
        state.load(folder / "state", step.parameters, step.optimizer, RUN)


def test_one_process_alone_shares_with_nobody(folder: Path) -> None:
    with pytest.raises(InputError, match="set tuning.sharding to none: there is no process group"):
        make_step(folder, tuning=SHARDED)


def test_gradients_are_clipped_as_torch_clips() -> None:
    found, expected = ([torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))] for _ in range(2))
    for parameter in (*found, *expected):
        parameter.grad = torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape)
    norm = clip_gradients(found, 0.5)
    assert norm == float(torch.nn.utils.clip_grad_norm_(expected, 0.5))
    for one, other in zip(found, expected, strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
