"""A training whose storage is full, or not for writing: it ends at once, and says where to make room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.running import ROOT, run_job
from tests.jobs.test_train import write_train_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def train_on(folder: Path, mounted: str) -> subprocess.CompletedProcess[str]:
    """The job with its output on a file system of its own."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount (root)")
    config = write_train_config(folder, evaluation=None)
    (folder / "out").mkdir()
    command = f'mount -t tmpfs -o {mounted} tmpfs "$1" && exec "$2" -m jobs train "$3"'
    words = ["unshare", "--mount", "bash", "-c", command, "-", str(folder / "out"), sys.executable, str(config)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=500)


def test_a_full_disk_ends_the_run_at_once(tmp_path: Path) -> None:
    done = train_on(tmp_path, "size=600k")
    assert done.returncode == 2, done.stderr
    assert "error: free some space (or raise the quota) and run again: the storage is full at" in done.stderr
    assert "checkpoints/step-" in done.stderr


def test_an_output_that_is_not_for_writing_is_named(tmp_path: Path) -> None:
    done = train_on(tmp_path, "ro")
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: get permission for {tmp_path}/out/")


@pytest.mark.usefixtures("local_ray")
def test_an_output_that_is_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    assert run_job("train", write_train_config(tmp_path)) == 2
    assert f"check the path {tmp_path}/out/" in capsys.readouterr().err
