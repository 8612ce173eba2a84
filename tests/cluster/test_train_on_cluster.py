"""Training on two raylets: a node dies under it, another joins, and the losses are those of a run in peace."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.checkpoints import tiny_bert
from tests.cluster.raylets import ADDRESS, Raylets, two_raylets
from tests.jobs.running import ROOT, write_jsonl
from tests.jobs.test_train import topics
from tests.jobs.train_kills import losses_of, report_of, states_of, training_workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_bert(tmp_path / "model", hidden=128)
    write_jsonl(tmp_path / "pairs.jsonl", topics(3000))
    return tmp_path


def write_config(folder: Path, name: str, tuning: Mapping[str, Any] | None = None, **compute: Any) -> Path:
    """A run of a minute or more into `folder/name`."""
    config = {
        "model": str(folder / "model"),
        "sets": [{"name": "pairs", "path": str(folder / "pairs.jsonl"), "kind": "pairs"}],
        "batch": {"size": 256},
        # which every worker draws for itself; and what other numbers of workers round alike
        "tuning": {"dropout": 0, "attention_dropout": 0, "precision": "float32", **(tuning or {})},
        "steps": STEPS,
        "checkpoints": {"every": 20},
        "output": {"path": str(folder / name)},
        "compute": {"cpus_per_worker": 1, "max_failures": -1, **compute},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(cluster: Raylets, config: Path) -> subprocess.Popen[str]:
    """The job, joined to the cluster."""
    return cluster.start([sys.executable, "-m", "jobs", "train", str(config)], ROOT, {"RAY_ADDRESS": ADDRESS})


def assert_ends_well(process: subprocess.Popen[str]) -> None:
    output, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, output + errors


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], what: str, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended before {what}: {process.communicate()}"
        assert time.monotonic() < end, f"{what} did not come in {seconds:.0f} s"
        time.sleep(0.5)


def trains_on(cluster: Raylets, output: Path, workers: int) -> Callable[[], bool]:
    """Whether a state was stored since now by so many workers."""
    before = max(states_of(output), default=0)

    def look() -> bool:
        has_them = len(training_workers(cluster.pid)) == workers
        return has_them and max(states_of(output), default=0) > before

    return look


def test_a_node_dies_and_training_goes_on_when_another_joins(folder: Path) -> None:
    output = folder / "killed"
    with two_raylets() as cluster:
        process = start(cluster, write_config(folder, "killed", workers=3))
        wait_for(trains_on(cluster, output, 3), process, "a state of three workers")
        before = states_of(output)
        cluster.replace_node(0)
        wait_for(trains_on(cluster, output, 3), process, "a state after the node died")
        assert min(states_of(output)) >= min(before), "it went on from its last state"
        assert_ends_well(process)
        assert_ends_well(start(cluster, write_config(folder, "whole", workers=3)))
    assert losses_of(output) == losses_of(folder / "whole")


@pytest.mark.parametrize("tuning", [{}, {"sharding": "fsdp2"}], ids=["whole", "sharded"])
def test_four_workers_then_two_then_four_have_the_losses_of_two(folder: Path, tuning: dict[str, str]) -> None:
    output = folder / "elastic"
    with two_raylets() as cluster:
        process = start(cluster, write_config(folder, "elastic", tuning, workers=[2, 4], resize_seconds=2))
        wait_for(trains_on(cluster, output, 4), process, "a state of four workers")
        cluster.kill_node(0)
        wait_for(trains_on(cluster, output, 2), process, "a state of two workers")
        resized = max(states_of(output))
        cluster.add_node(1)
        wait_for(trains_on(cluster, output, 4), process, "a state of four workers again")
        print(f"two workers until after step {resized}, four again by step {max(states_of(output))}")
        assert_ends_well(process)
        assert report_of(output)["workers"] == 4
        assert_ends_well(start(cluster, write_config(folder, "fixed", workers=2)))
    elastic, fixed = (np.array(losses_of(folder / name)) for name in ("elastic", "fixed"))
    assert len(elastic) == STEPS
    print(f"largest relative difference of a loss: {np.max(np.abs(elastic - fixed) / fixed):.1e}")
    np.testing.assert_allclose(elastic, fixed, rtol=1e-4)
