"""A session in a process of its own, as in a job: Ray reads its environment once, when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.environment import COMPUTE_VARIABLES, ROOT
from tests.cluster.raylets import ADDRESS, Raylets

JOB = """
import json, os, sys
from cluster.environment import COMPUTE_VARIABLES, sane_environment
sane_environment()
from cluster.errors import ClusterError
from cluster.session import compute_runtime_env, connect
import ray, ray.data

@ray.remote
def on_worker():
    from operators.work import fragment
    return [fragment.__file__, os.environ["TOKENIZERS_PARALLELISM"], ray.get_runtime_context().get_node_id()]

@ray.remote
def compute_variables():
    return {name: os.environ.get(name) for name in COMPUTE_VARIABLES}

class Doubler:
    def __call__(self, batch):
        return {"id": batch["id"] * 2}

try:
    with connect() as session:
        facts = {name: getattr(session, name) for name in session.__slots__}
        with connect() as inner:
            facts["inner"] = inner.address
        workers = [on_worker.options(scheduling_strategy="SPREAD").remote() for _ in range(4)]
        facts["workers"] = ray.get(workers)
        facts["runtime_env"] = compute_runtime_env()
        facts["computing"] = ray.get(compute_variables.options(runtime_env=compute_runtime_env()).remote())
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=1)
        doubled = ray.data.range(10, override_num_blocks=2).map_batches(Doubler, num_cpus=0.5, compute=pool)
        facts["sum"] = doubled.sum("id")
        facts["logs_exist"] = os.path.isdir(session.logs)
    facts["left"] = sorted(COMPUTE_VARIABLES.keys() & os.environ.keys())
    facts["after"] = [ray.is_initialized(), os.path.isdir(session.logs)]
    print(json.dumps(facts))
except ClusterError as error:
    sys.exit(str(error))
"""


def run_here(cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k not in COMPUTE_VARIABLES}
    env = {**clean, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, "-c", JOB], cwd=cwd, env=env, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(
        "a-temporary-folder-whose-path-is-too-long-for-the-unix-sockets-that-ray-makes-in-it"
    )


@pytest.fixture(scope="module")
def local_run(home: Path) -> subprocess.CompletedProcess[str]:
    return run_here(home, TMPDIR=str(home), HOME=str(home), PYTHONWARNINGS="ignore", MALLOC_ARENA_MAX="3")


@pytest.fixture(scope="module")
def local_facts(local_run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert local_run.returncode == 0, local_run.stderr
    facts: dict[str, Any] = json.loads(local_run.stdout)
    return facts


def test_session_without_a_cluster_starts_one_here_and_ends_it(local_facts: dict[str, Any]) -> None:
    assert local_facts["local"]
    assert local_facts["num_nodes"] == 1
    assert local_facts["num_cpus"] >= 2
    assert local_facts["logs_exist"]
    assert local_facts["after"] == [False, False]


def test_session_inside_a_session_joins_it_and_leaves_it_running(local_facts: dict[str, Any]) -> None:
    assert local_facts["inner"] == local_facts["address"]
    assert local_facts["sum"] == 90


def test_session_workers_import_the_code_from_any_folder(local_facts: dict[str, Any]) -> None:
    for file, tokenizers_parallelism, _ in local_facts["workers"]:
        assert Path(file) == ROOT / "operators/work/fragment.py"
        assert tokenizers_parallelism == "false"


def test_processes_that_compute_inherit_their_variables_and_can_be_those_that_wait(local_facts: dict[str, Any]) -> None:
    assert local_facts["runtime_env"] == {}  # another one would need a new process
    assert local_facts["computing"] == {**COMPUTE_VARIABLES, "MALLOC_ARENA_MAX": "3"}  # what the user has set wins
    assert local_facts["left"] == ["MALLOC_ARENA_MAX"]


def test_session_prints_nothing_of_its_own(local_run: subprocess.CompletedProcess[str]) -> None:
    assert local_run.stderr == ""
    assert len(local_run.stdout.splitlines()) == 1


def test_session_leaves_no_token_and_no_folder_behind(home: Path, local_facts: dict[str, Any]) -> None:
    assert list(home.iterdir()) == []
    assert not Path(local_facts["logs"]).exists()


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("127.0.0.1:9", "check RAY_ADDRESS and the network"),
        ("http://127.0.0.1:8265", "submit the job"),
        ("nonsense", "set RAY_ADDRESS to HOST:PORT"),
    ],
)
def test_session_at_a_bad_address_says_what_to_do(address: str, advice: str, tmp_path: Path) -> None:
    done = run_here(tmp_path, RAY_ADDRESS=address)
    assert done.returncode == 1
    assert done.stderr.startswith(advice)
    assert address in done.stderr


@pytest.mark.slow
def test_session_joins_a_cluster_of_two_raylets_with_its_code(raylets: Raylets, tmp_path: Path) -> None:
    env = {"RAY_ADDRESS": ADDRESS, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = raylets.run([sys.executable, "-c", JOB], tmp_path, env)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert not facts["local"]
    assert (facts["num_nodes"], facts["num_cpus"], facts["address"]) == (2, 4, ADDRESS)
    assert facts["sum"] == 90
    assert facts["runtime_env"] == {"env_vars": COMPUTE_VARIABLES}
    assert facts["computing"] == COMPUTE_VARIABLES
    assert len({node for _, _, node in facts["workers"]}) == 2
    assert not any(file.startswith(str(ROOT)) for file, _, _ in facts["workers"])  # the code that was sent, not ours


@pytest.mark.slow
@pytest.mark.parametrize(("token", "fault"), [("wrong", "refused ours"), ("", "none was found")])
def test_session_without_the_right_token_is_refused(token: str, fault: str, raylets: Raylets, tmp_path: Path) -> None:
    env = {"RAY_ADDRESS": ADDRESS, "RAY_AUTH_TOKEN": token, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = raylets.run([sys.executable, "-c", JOB], tmp_path, env)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "network_util.cc" not in line]  # there is no network
    assert lines[0].startswith("set RAY_AUTH_TOKEN")
    assert fault in lines[0]
