"""A Ray cluster of two raylets on one machine, with token authentication and the job server, in a network of its own.

Ray binds to every interface and uses fixed ports, and to end a cluster it kills by name. In own network and process
namespaces it can meet no other Ray, sees a true loopback, and ends with its first process. Each raylet has its own
temporary folder, as on two machines: in a shared one the second unpacks the code of a job over that of the first, while
the job imports it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

DASHBOARD = "http://127.0.0.1:8265"
ADDRESS = "127.0.0.1:6379"
_RAY_START = "ray start --num-cpus=2 --object-store-memory=200000000 --disable-usage-stats"
_SCRIPT = f"""
set -e
ip link set lo up
mkdir "$1/head" "$1/node-0"
{_RAY_START} --head --port=6379 --dashboard-port=8265 --temp-dir="$1/head" >"$1/head.log" 2>&1
{_RAY_START} --address={ADDRESS} --temp-dir="$1/node-0" >"$1/node-0.log" 2>&1
echo ready
sleep infinity &
wait
"""


@dataclass(frozen=True)
class Raylets:
    """A running cluster: 2 nodes with 2 CPUs each."""

    pid: int  # the first process inside
    env: Mapping[str, str]  # with the right token
    folder: Path  # of the temporary folders: head, node-0 and what replaces it

    def start(self, command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command on the cluster's machine; `env` changes variables, and an empty value removes one."""
        merged = {name: value for name, value in {**self.env, **(env or {})}.items() if value != ""}
        inside = ["nsenter", f"--target={self.pid}", "--net", "--pid", "--mount", f"--wdns={cwd}", *command]
        return subprocess.Popen(
            inside, env=merged, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts
        )

    @staticmethod
    def interrupt(process: subprocess.Popen[str]) -> None:
        """Press Ctrl-C at a started command; `process` itself is nsenter, which waits for it."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGINT)

    def run(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, seconds: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the cluster's machine to its end."""
        with self.start(command, cwd, env) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"no end after {seconds} s: {command}\n{out}\n{err}") from None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def replace_node(self, number: int) -> None:
        """Kill node `number` (0 at first), then start the next in its place."""
        self.kill_node(number)
        self.add_node(number + 1)

    def kill_node(self, number: int) -> None:
        """Kill a node and its workers as a power cut does."""
        place = str(self.folder / f"node-{number}")
        raylets = [p for p in psutil.process_iter() if _is_raylet(p, place)]
        assert raylets, f"no raylet runs in {place}"
        for process in [*raylets, *(child for raylet in raylets for child in raylet.children(recursive=True))]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def add_node(self, number: int) -> None:
        """Start a node."""
        place = self.folder / f"node-{number}"
        place.mkdir()
        started = self.run([*_RAY_START.split(), f"--address={ADDRESS}", f"--temp-dir={place}"], self.folder)
        assert started.returncode == 0, started.stdout + started.stderr


def _heed_interrupts() -> None:
    # a shell starts what it puts in the background deaf to Ctrl-C, and its children inherit that
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _is_raylet(process: psutil.Process, folder: str) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return bool(words) and words[0].endswith("/raylet") and any(folder in word for word in words)


@contextmanager
def two_raylets(token: str = "a-token-for-tests-only") -> Iterator[Raylets]:
    """Start the cluster (15 s), or skip the test where this machine does not allow it."""
    _skip_unless_possible()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where `ray` and the jobs' `python` are
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EMBEDFLEET_"))}
    env |= {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "HF_HUB_OFFLINE": "1"}
    folder = tempfile.mkdtemp(prefix="raylets-", dir="/tmp")  # short: the sockets' paths are limited
    command = [
        "unshare",
        "--net",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "bash",
        "-c",
        _SCRIPT,
        "-",
        folder,
    ]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                pytest.fail("".join(path.read_text() for path in Path(folder).glob("*.log")))
            inside = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
            yield Raylets(int(inside), env, Path(folder))
        finally:
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _skip_unless_possible() -> None:
    missing = [tool for tool in ("unshare", "nsenter", "ip", "bash") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to create network namespaces (root)")
