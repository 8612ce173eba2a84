"""Memory of the driver and of the workers while a corpus grows: python -m benchmarks.memory [ROWS ...]

Embeds corpora of short texts with a tiny random model, each in a process of its own, and samples resident memory twice
a second. The driver holds fragments and never rows, so its peak must not follow the number of rows; a worker's must not
follow the number of fragments.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROWS = (50_000, 1_000_000)
WORKER = "ray::MapWorker(MapBatches(EmbedWorker))"


def main(sizes: list[int]) -> None:
    """Print a line for each corpus."""
    from tests.checkpoints import tiny_bert

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_bert(folder / "model")
        print(f"{'rows':>12} {'seconds':>8} {'driver MB':>10} {'worker MB, 1st half':>20} {'2nd half':>9}")
        for rows in sizes:
            seconds, driver, first, second = _measure(folder / str(rows), model, rows)
            print(f"{rows:>12,} {seconds:>8.0f} {driver:>10.0f} {first:>20.0f} {second:>9.0f}", flush=True)


def _measure(folder: Path, model: Path, rows: int) -> tuple[float, float, float, float]:
    folder.mkdir()
    words = np.array(["time", "people", "year", "way", "day", "man", "thing", "world", "life", "hand", "part", "place"])
    picks = np.random.default_rng(0).integers(0, len(words), (rows, 4))
    texts = [" ".join(words[row]) for row in picks]
    pq.write_table(pa.table({"id": np.arange(rows), "text": texts}), folder / "docs.parquet", row_group_size=16384)
    config = {
        "source": {"path": str(folder / "docs.parquet"), "id": "id"},
        "model": str(model),
        "output": {"path": str(folder / "vectors")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "jobs", "embed", str(folder / "config.yaml")]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    driver, workers = [0.0], [0.0]
    while process.poll() is None:
        driver.append(_resident_mb(psutil.Process(process.pid)))
        workers.append(max((_resident_mb(p) for p in _workers(process.pid)), default=0.0))
        time.sleep(0.5)
    assert process.returncode == 0, f"embed ended with {process.returncode}"
    busy = [mb for mb in workers if mb > 0]
    half = len(busy) // 2
    return time.monotonic() - started, max(driver), max(busy[:half], default=0.0), max(busy[half:], default=0.0)


def _workers(driver: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(driver).children(recursive=True)
    except psutil.Error:
        return []
    return [child for child in children if _name(child).startswith(WORKER)]


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _resident_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 1e6
    except psutil.Error:
        return 0.0


if __name__ == "__main__":
    main([int(word.replace("_", "")) for word in sys.argv[1:]] or list(ROWS))
