"""Kill the processes of a training from outside, and read back what it came to."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

WORKER = "ray::RayTrainWorker"


def losses_of(output: Path) -> list[float]:
    """The loss of every step, from the report."""
    losses: list[float] = report_of(output)["curve"]["steps"]["loss"]
    return losses


def report_of(output: Path) -> dict[str, Any]:
    """The report in a run's folder."""
    found: dict[str, Any] = json.loads((output / "report.json").read_text())
    return found


def states_of(output: Path) -> dict[int, int]:
    """The steps of the states that are whole, with the moment at which each was written."""
    found = {}
    for path in (output / "checkpoints").glob("step-*/progress.json"):
        with suppress(FileNotFoundError):
            found[int(path.parent.name.removeprefix("step-"))] = path.stat().st_mtime_ns
    return found


def training_workers(ancestor: int) -> list[psutil.Process]:
    """The training workers below a process; those of others on this machine are left alone."""
    found = []
    for process in psutil.Process(ancestor).children(recursive=True):
        with suppress(psutil.Error):
            if WORKER in " ".join(process.cmdline()[:1]):
                found.append(process)
    return found


def kill_workers(output: Path, times: int, moments: random.Random, kills: list[int], seconds: float = 1800) -> None:
    """kill -9 of one of this process's training workers, `times` times, each after a new state was stored."""
    end, before = time.monotonic() + seconds, 0
    while len(kills) < times and time.monotonic() < end and not (output / "report.json").exists():
        time.sleep(0.02)
        newest = max(states_of(output), default=0)
        if newest <= before:
            continue
        time.sleep(moments.uniform(0.0, 0.3))
        workers = training_workers(os.getpid())
        if workers:
            with suppress(psutil.NoSuchProcess):
                moments.choice(workers).kill()
                kills.append(newest)
                before = newest


def kill_driver(process: subprocess.Popen[str]) -> None:
    """kill -9 of a job, and of what outlives it; its Ray ends with it."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    for left in psutil.wait_procs(family, timeout=10)[1]:
        with suppress(psutil.NoSuchProcess):
            assert WORKER not in " ".join(left.cmdline()[:1]), "a training worker outlives its driver"
            left.kill()
