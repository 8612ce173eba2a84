"""`python -m cluster` as users run it: without a cluster first, then against two raylets with token authentication."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from cluster.environment import ROOT
from cluster.submit import follow
from tests.cluster.raylets import DASHBOARD, Raylets

# Stands for our jobs: as them it has a __main__, a config, overrides and an exit code, and uses every node.
JOB = """
import os, sys, time
from pathlib import Path
import ray
from cluster.environment import enter_base_directory, sane_environment
sane_environment()
from cluster.session import connect

print("arguments", *sys.argv[1:3], sys.argv[3:])
print("config", Path(sys.argv[2]).read_text().strip())
enter_base_directory()
print("here", os.getcwd())
print("environment", os.environ.get("GIVEN"), os.environ.get("TAKEN"), os.environ.get("NOT_SENT"))
with connect() as session:
    print("nodes", session.num_nodes, "cpus", session.num_cpus)
    remote = ray.remote(lambda: (ray.get_runtime_context().get_node_id(), __import__("jobs").__file__))
    used = ray.get([remote.options(scheduling_strategy="SPREAD", num_cpus=2).remote() for _ in range(4)])
    print("used", len(set(node for node, _ in used)))
    print("code", *set(file for _, file in used))
print("sleeping")
time.sleep(float(os.environ.get("SLEEP", 0)))
sys.exit(int(sys.argv[3].partition("=")[2]))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with our `cluster` and a tiny `jobs`."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "cluster", root / "cluster")
    (root / "jobs").mkdir()
    (root / "jobs/__init__.py").write_text("")
    (root / "jobs/__main__.py").write_text(JOB)
    return root


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "my config.yaml"
    path.write_text("text: 'quoted \"ümlaut\"'\n")
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "cluster", *map(str, words)]


def run_here(checkout: Path, *words: object) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(command(*words), cwd=checkout, env=env, capture_output=True, text=True, timeout=150)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["submit", "embed", "absent.yaml"], "check the path of the config; there is no file absent.yaml"),
        (["submit", "embed", __file__, "--address", "x", "limit"], "write overrides as dotted.key=value; got 'limit'"),
        (["submit", "embed", __file__, "--env", "ABSENT"], "set ABSENT in your environment"),
        (["submit", "embed", __file__], "give the address of the cluster's dashboard"),
        (["status", "--address", "127.0.0.1:6379"], "give the address of the cluster's dashboard"),
        (["status", "--address", "http://127.0.0.1:9"], "check the address and the network"),
        (["dance"], "usage:"),
        (["submit", "embed", __file__, "--dance"], "usage:"),
    ],
)
def test_cluster_with_a_bad_command_says_what_to_do_and_exits_2(words: list[str], advice: str, checkout: Path) -> None:
    done = run_here(checkout, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(advice)


class BrokenConnection:
    """A cluster whose connection is lost twice: once within the log, once when the job has just failed."""

    def __init__(self) -> None:
        self._logs = [["one\n", "two\n"], ["one\ntw", "o\nthree\n"]]
        self._states: list[tuple[JobStatus, int | None]] = [
            (JobStatus.RUNNING, None),
            (JobStatus.FAILED, 3),
            (JobStatus.FAILED, 3),
        ]

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for text in self._logs.pop(0):
            yield text
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job_id: str) -> JobDetails:
        status, code = self._states.pop(0)
        return JobDetails(type=JobType.SUBMISSION, entrypoint="", status=status, driver_exit_code=code)

    def get_job_logs(self, job_id: str) -> str:
        return "one\ntwo\nthree\nfour\n"


def test_submit_that_loses_the_connection_prints_every_line_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.submit._RECONNECT_SECONDS", 0)
    out = io.StringIO()
    assert follow(cast(JobSubmissionClient, BrokenConnection()), "job", out) == 3
    assert out.getvalue() == "one\ntwo\nthree\nfour\n"


@pytest.mark.slow
def test_submit_follows_the_log_and_returns_the_exit_code(raylets: Raylets, checkout: Path, config: Path) -> None:
    words = ["submit", "tiny", config, "code=0", "--env", "GIVEN=a b", "--env", "TAKEN", "b.c=$x; 'y'"]
    env = {"TAKEN": "taken-secret", "NOT_SENT": "private", "RAY_API_SERVER_ADDRESS": DASHBOARD}
    done = raylets.run(command(*words), checkout, env)
    assert done.returncode == 0, done.stderr
    log = done.stdout
    assert """arguments tiny submitted/my config.yaml ['code=0', "b.c=$x; 'y'"]""" in log
    assert "config text: 'quoted \"ümlaut\"'" in log
    assert f"here {checkout}" in log
    assert "environment a b taken-secret None" in log
    assert "nodes 2 cpus 4" in log
    assert "used 2" in log
    assert "code /" in log
    assert f"code {checkout}" not in log  # the code that was sent, not what the job finds in the user's folder
    assert done.stderr.startswith("submitted tiny-my config-")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_submit_returns_the_exit_code_of_a_failed_job(raylets: Raylets, checkout: Path, config: Path) -> None:
    words = ["submit", "tiny", config, "code=7", "--address", DASHBOARD]
    done = raylets.run(command(*words), checkout, {"RAY_ADDRESS": "http://127.0.0.1:9"})  # the argument wins
    assert done.returncode == 7, done.stderr
    assert "sleeping" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("token", "fault"), [("wrong", "refused the token"), ("", "wants a token and got none")])
def test_submit_without_the_right_token_exits_2(
    token: str, fault: str, raylets: Raylets, checkout: Path, config: Path, tmp_path: Path
) -> None:
    env = {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "", "HOME": str(tmp_path)}
    done = raylets.run(command("submit", "tiny", config, "code=0", "--address", DASHBOARD), checkout, env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("set RAY_AUTH_TOKEN")
    assert fault in done.stderr
    assert "wrong" not in done.stderr


@pytest.fixture
def sleeping_job(raylets: Raylets, checkout: Path, config: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A job that sleeps for ten minutes, submitted with --no-wait."""
    job_id = f"sleeper-{time.time_ns()}"
    words = ["submit", "tiny", config, "code=0", "--no-wait", "--id", job_id, "--env", "SLEEP=600"]
    done = raylets.run(command(*words, "--address", DASHBOARD), checkout)
    assert (done.returncode, done.stdout) == (0, f"{job_id}\n"), done.stderr
    yield job_id
    raylets.run(command("stop", job_id, "--address", DASHBOARD), checkout)


@pytest.mark.slow
def test_submit_of_a_name_twice_is_refused(raylets: Raylets, checkout: Path, config: Path, sleeping_job: str) -> None:
    words = ["submit", "tiny", config, "code=0", "--id", sleeping_job, "--address", DASHBOARD]
    done = raylets.run(command(*words), checkout)
    assert done.returncode == 2
    assert "was submitted to this cluster before" in done.stderr


@pytest.mark.slow
def test_cluster_shows_follows_and_stops_a_job(raylets: Raylets, checkout: Path, sleeping_job: str) -> None:
    at = ["--address", DASHBOARD]
    assert sleeping_job in raylets.run(command("status", *at), checkout).stdout
    following = raylets.start(command("logs", sleeping_job, "--follow", *at), checkout)
    assert following.stdout is not None
    while "sleeping" not in (line := following.stdout.readline()):
        assert line, "the log ended early"

    assert raylets.run(command("stop", sleeping_job, *at), checkout).stdout == f"stopped {sleeping_job}\n"
    _, err = following.communicate(timeout=150)
    assert following.returncode == 1
    assert f"job {sleeping_job} stopped" in err
    assert "STOPPED" in raylets.run(command("status", sleeping_job, *at), checkout).stdout
    assert "sleeping" in raylets.run(command("logs", sleeping_job, *at), checkout).stdout
    assert "had ended already" in raylets.run(command("stop", sleeping_job, *at), checkout).stdout


@pytest.mark.slow
def test_cluster_of_an_unknown_job_exits_2(raylets: Raylets, checkout: Path) -> None:
    for verb in ("status", "logs", "stop"):
        done = raylets.run(command(verb, "nobody", "--address", DASHBOARD), checkout)
        assert (done.returncode, done.stdout) == (2, ""), verb
        assert "there is none 'nobody'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("option", "state"), [([], "RUNNING"), (["--stop-on-interrupt"], "STOPPED")])
def test_submit_interrupted_leaves_the_job_or_stops_it(
    option: list[str], state: str, raylets: Raylets, checkout: Path, config: Path
) -> None:
    job_id = f"interrupted-{time.time_ns()}"
    words = ["submit", "tiny", config, "code=0", "--id", job_id, "--env", "SLEEP=600", "--address", DASHBOARD, *option]
    submitting = raylets.start(command(*words), checkout)
    assert submitting.stdout is not None
    while "sleeping" not in (line := submitting.stdout.readline()):
        assert line, "the log ended early"
    raylets.interrupt(submitting)
    _, err = submitting.communicate(timeout=150)
    assert submitting.returncode == 1
    assert job_id in err
    assert state in raylets.run(command("status", job_id, "--address", DASHBOARD), checkout).stdout
    raylets.run(command("stop", job_id, "--address", DASHBOARD), checkout)
