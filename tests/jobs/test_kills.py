"""Kill real processes at random moments and run again: every row is accounted for, and finished work is not done twice.

Each test kills `MOMENTS` times. All of them are slow: `make test-all`, or EMBEDFLEET_KILLS=3 for a short look.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.raylets import ADDRESS, two_raylets
from tests.jobs.running import ROOT, documents, snapshot_of, start_job, vectors_of, write_config, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

MOMENTS = int(os.environ.get("EMBEDFLEET_KILLS", "20"))
ROWS, ROWS_PER_FRAGMENT = 60_000, 150
WORKER = "ray::MapWorker(MapBatches(EmbedWorker))"


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path) -> Path:
    """A config whose run takes long enough to be killed again and again."""
    for i in range(4):
        write_jsonl(tmp_path / "in" / f"{i}.jsonl", documents(ROWS // 4, start=i * ROWS // 4))
    source = {"path": str(tmp_path / "in"), "rows_per_fragment": ROWS_PER_FRAGMENT}
    return write_config(tmp_path, tiny_model, source=source, compute={"workers": [1, 2]})


def test_embedding_workers_killed_at_random_moments(job: Path) -> None:
    moments = random.Random(1)
    process = start_job("embed", job)
    kills = 0
    while process.poll() is None and kills < MOMENTS:
        time.sleep(moments.uniform(0.2, 3.0))
        workers = _embedding_workers(process.pid)
        if workers:
            _kill(moments.choice(workers))
            kills += 1
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output
    print(f"{kills} workers killed")
    assert kills >= min(MOMENTS, 10), output
    _assert_sound(job)


def test_driver_killed_at_random_moments(job: Path) -> None:
    moments = random.Random(2)
    vectors = job.parent / "vectors"
    kills = 0
    while kills < MOMENTS:
        before = _written(vectors)
        process = start_job("embed", job)
        _wait_for_first_fragment(process, vectors, before)
        time.sleep(moments.uniform(0.0, 1.0))
        if process.poll() is not None:
            process.communicate()
            break  # a fast machine is through before the last kill
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        kills += 1
        process.communicate()
        # Workers end with their driver; Ray's agents and workers that were just starting outlive it by a minute.
        for left in psutil.wait_procs(family, timeout=10)[1]:
            assert "ray::Map" not in _name(left), f"{_name(left)} outlives its driver"
            _kill(left)
        after = _written(vectors)
        # What was on storage before is neither gone nor written again: only fragments in flight are lost.
        assert {name: after[name] for name in before} == before
    print(f"{kills} drivers killed")
    assert kills >= min(MOMENTS, 10)
    process = start_job("embed", job)
    before = _written(vectors)
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output
    after = _written(vectors)
    assert {name: after[name] for name in before} == before
    _assert_sound(job)


def test_node_killed_at_random_moments(job: Path) -> None:
    moments = random.Random(3)
    with two_raylets() as cluster:
        process = cluster.start([sys.executable, "-m", "jobs", "embed", str(job)], ROOT, {"RAY_ADDRESS": ADDRESS})
        kills = 0
        while process.poll() is None and kills < MOMENTS:
            time.sleep(moments.uniform(1.0, 6.0))
            if _written(job.parent / "vectors"):
                cluster.replace_node(kills)
                kills += 1
        output, errors = process.communicate(timeout=1800)
        assert process.returncode == 0, output + errors
        print(f"{kills} nodes killed")
        assert kills >= min(MOMENTS, 5)
    _assert_sound(job)


def _embedding_workers(driver: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(WORKER):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _wait_for_first_fragment(process: subprocess.Popen[str], vectors: Path, before: dict[str, int]) -> None:
    while process.poll() is None and len(_written(vectors)) == len(before):
        time.sleep(0.05)


def _written(vectors: Path) -> dict[str, int]:
    """Data files with the moment at which each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (vectors / "data").glob("[!.]*.parquet")}


def _assert_sound(job: Path) -> None:
    folder = job.parent
    records = snapshot_of(folder).records
    assert sum(record.rows for record in records) == ROWS
    assert len(set(vectors_of(folder)["doc_id"].to_pylist())) == ROWS
    report = json.loads((folder / "vectors" / "report.json").read_text())
    assert report["dataset"]["rows"] == ROWS
    verification = start_job("verify", job)
    output, _ = verification.communicate(timeout=900)
    assert verification.returncode == 0, output
