"""Kill workers and drivers of a training at random moments: it goes on from its last state with the same losses.

Slow: `make test-all`, or EMBEDFLEET_KILLS=3 for a short look. Nodes: tests/cluster/test_train_on_cluster.py.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from tests.jobs.running import run_job, start_job
from tests.jobs.test_train import write_train_config
from tests.jobs.train_kills import kill_driver, kill_workers, losses_of, report_of, states_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.usefixtures("local_ray")]

MOMENTS = int(os.environ.get("EMBEDFLEET_KILLS", "10"))
STEPS, EVERY = 400, 10
KEEP = {"every": EVERY, "keep": STEPS}


@pytest.mark.parametrize(("workers", "tuning"), [(1, {}), (2, {}), (2, {"sharding": "fsdp2"})])
def test_workers_killed_at_random_moments(tmp_path: Path, workers: int, tuning: dict[str, str]) -> None:
    sections = {"steps": STEPS, "checkpoints": KEEP, "evaluation": None, "tuning": tuning}
    compute = {"workers": workers, "cpus_per_worker": 1, "max_failures": -1}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kills: list[int] = []
    killer = threading.Thread(target=kill_workers, args=(killed, MOMENTS, random.Random(workers), kills))
    killer.start()
    config = write_train_config(tmp_path, compute=compute, output={"path": str(killed)}, **sections)
    assert run_job("train", config) == 0
    killer.join()
    print(f"{len(kills)} workers killed, after the states of the steps {kills}")
    assert len(kills) >= min(MOMENTS, 3)
    config = write_train_config(tmp_path, compute=compute, output={"path": str(whole)}, **sections)
    assert run_job("train", config) == 0
    assert_same_run(killed, whole)


def test_driver_killed_at_random_moments(tmp_path: Path) -> None:
    moments = random.Random(3)
    output = tmp_path / "killed"
    config = write_train_config(tmp_path, steps=STEPS, checkpoints=KEEP, output={"path": str(output)})
    kills = []
    while len(kills) < MOMENTS:
        before = states_of(output)
        process = start_job("train", config)
        while process.poll() is None and len(states_of(output)) == len(before):
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 0.5))
        if process.poll() is not None:
            process.communicate()
            break  # a fast machine is through before the last kill
        kill_driver(process)
        kills.append(max(states_of(output)))
        # it went on from the last state: none of those before was written again
        assert {step: states_of(output)[step] for step in before} == before
    print(f"{len(kills)} drivers killed, after the states of the steps {kills}")
    assert len(kills) >= min(MOMENTS, 3)
    before = states_of(output)
    assert run_job("train", config) == 0
    assert {step: states_of(output)[step] for step in before} == before
    whole = tmp_path / "whole"
    sections = {"steps": STEPS, "checkpoints": KEEP, "output": {"path": str(whole)}}
    assert run_job("train", write_train_config(tmp_path, **sections)) == 0
    assert_same_run(output, whole)


@pytest.mark.parametrize("seen", ["checkpoints/step-00000020/progress.json", "model/config.json"])
def test_driver_killed_after_the_last_step(tmp_path: Path, seen: str) -> None:
    output, whole = tmp_path / "killed", tmp_path / "whole"
    config = write_train_config(tmp_path, output={"path": str(output)})
    process = start_job("train", config)
    while process.poll() is None and not (output / seen).exists():
        time.sleep(0.002)
    kill_driver(process)
    assert not (output / "report.json").exists(), "killed too late"
    print(f"killed with {sorted(path.name for path in (output / 'model').glob('*'))} in model/")
    (output / "model" / "model.safetensors").unlink(missing_ok=True)
    before = states_of(output)
    assert run_job("train", config) == 0
    assert states_of(output) == before, "no step was trained again"
    assert run_job("train", write_train_config(tmp_path, output={"path": str(whole)})) == 0
    assert_same_run(output, whole)
    assert {file.name for file in (output / "model").iterdir()} == {file.name for file in (whole / "model").iterdir()}
    SentenceTransformer(str(output / "model"), device="cpu").encode(["a text"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """A folder with a finished run in `out`, which keeps all its states."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_job("train", write_train_config(folder, checkpoints={"every": 5, "keep": 4})) == 0
    return folder


def test_a_model_that_is_gone_is_made_again(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished / "out", output)
    shutil.rmtree(output / "model")
    before = states_of(output)
    config = write_train_config(finished, checkpoints={"every": 5, "keep": 4}, output={"path": str(output)})
    assert run_job("train", config) == 0
    assert states_of(output) == before, "no step was trained again"
    assert_same_run(output, finished / "out")


def truncate_weights(states: Path) -> None:
    file = states / "step-00000020" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def truncate_optimizer(states: Path) -> None:
    file = states / "step-00000020" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def remove_newest(states: Path) -> None:
    shutil.rmtree(states / "step-00000020")


def half_upload(states: Path) -> None:
    """As if killed while the state, and Ray Train's list, were written."""
    (states / "step-00000020" / "progress.json").unlink()
    file = states / "checkpoint_manager_snapshot.json"
    file.write_text(file.read_text()[:200])


@pytest.mark.parametrize("damage", [truncate_weights, truncate_optimizer, remove_newest, half_upload])
def test_a_damaged_state_is_passed_over(
    finished: Path, tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    output = unfinished_copy(finished, tmp_path)
    damage(output / "checkpoints")
    config = write_train_config(finished, checkpoints={"every": 5, "keep": 4}, output={"path": str(output)})
    before = states_of(output)
    assert run_job("train", config) == 0
    assert_same_run(output, finished / "out")
    after = states_of(output)
    assert {step for step in after if after[step] != before.get(step)} == {20}, "it went on from step 15"
    is_damaged = damage in (truncate_weights, truncate_optimizer)
    assert ("going on from step 15, for the state after it is damaged" in capsys.readouterr().out) == is_damaged


def test_nothing_but_damaged_states_is_said(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = unfinished_copy(finished, tmp_path)
    for file in (output / "checkpoints").glob("*/weights.safetensors"):
        file.write_bytes(b"")
    config = write_train_config(finished, checkpoints={"every": 5, "keep": 4}, output={"path": str(output)})
    assert run_job("train", config) == 2
    assert f"error: remove {output}/checkpoints to train anew: no state in it reads" in capsys.readouterr().err


def test_the_first_of_equally_good_weights_is_kept(tmp_path: Path) -> None:
    """A learning rate so small that no score ever changes."""
    sections = {"evaluation": {"every": 5}, "checkpoints": {"every": 5, "keep": 1}}
    optimization = {"learning_rate": 1e-12, "weight_decay": 0}
    assert run_job("train", write_train_config(tmp_path, optimization=optimization, **sections)) == 0
    assert report_of(tmp_path / "out")["kept_step"] == 5
    assert set(states_of(tmp_path / "out")) >= {5}


def unfinished_copy(finished: Path, folder: Path) -> Path:
    """The run as it was before it wrote its model."""
    output = folder / "out"
    shutil.copytree(finished / "out", output)
    shutil.rmtree(output / "model")
    (output / "report.json").unlink()
    return output


def assert_same_run(found: Path, expected: Path) -> None:
    """Losses, scores and weights, bit for bit."""
    assert losses_of(found) == losses_of(expected)
    assert report_of(found)["curve"]["evaluations"] == report_of(expected)["curve"]["evaluations"]
    assert report_of(found)["kept_step"] == report_of(expected)["kept_step"]
    weights = [folder / "model" / "model.safetensors" for folder in (found, expected)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
