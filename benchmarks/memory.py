"""Memory of the driver and of the workers while a corpus grows: python -m benchmarks.memory [ROWS ...]

    python -m benchmarks.memory 8000 --data passages.jsonl.gz --model minilm      # real texts and a real model

Embeds corpora of short texts with a tiny random model, each in a process of its own, and samples resident memory twice
a second. The driver holds fragments and never rows, so its peak must not follow the number of rows; a worker's must not
follow the number of fragments. Of a worker also what is its own (USS): the pages of libraries, weights and fragments
that it maps are there once for all workers of a machine.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
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


def main(arguments: argparse.Namespace) -> None:
    """Print a line for each corpus."""
    from tests.checkpoints import tiny_bert

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or str(tiny_bert(folder / "model"))
        print(f"{'rows':>12} {'seconds':>8} {'driver MB':>10} {'worker MB, 1st half':>20} {'2nd half':>9} {'own':>6}")
        for rows in arguments.rows:
            texts = _texts_of(arguments.data, rows) if arguments.data else _short_texts(rows)
            seconds, driver, first, second, own = _measure(folder / str(rows), model, texts, arguments)
            print(f"{rows:>12,} {seconds:>8.0f} {driver:>10.0f} {first:>20.0f} {second:>9.0f} {own:>6.0f}", flush=True)


def _short_texts(rows: int) -> list[str]:
    words = np.array(["time", "people", "year", "way", "day", "man", "thing", "world", "life", "hand", "part", "place"])
    picks = np.random.default_rng(0).integers(0, len(words), (rows, 4))
    return [" ".join(words[row]) for row in picks]


def _texts_of(path: Path, rows: int) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in itertools.islice(lines, rows)]


def _measure(
    folder: Path, model: str, texts: list[str], arguments: argparse.Namespace
) -> tuple[float, float, float, float, float]:
    folder.mkdir()
    rows_per_fragment = arguments.rows_per_fragment
    table = pa.table({"id": np.arange(len(texts)), "text": texts})
    pq.write_table(table, folder / "docs.parquet", row_group_size=rows_per_fragment or 16384)
    size = {} if rows_per_fragment is None else {"rows_per_fragment": rows_per_fragment}
    config = {
        "source": {"path": str(folder / "docs.parquet"), "id": "id", **size},
        "model": model,
        "output": {"path": str(folder / "vectors")},
        "embedder": {"compute_dtype": arguments.dtype},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "jobs", "embed", str(folder / "config.yaml")]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    driver, workers, own = [0.0], [0.0], [0.0]
    while process.poll() is None:
        driver.append(_resident_mb(psutil.Process(process.pid)))
        found = _workers(process.pid)
        workers.append(max(map(_resident_mb, found), default=0.0))
        own.append(max(map(_own_mb, found), default=0.0))
        time.sleep(0.5)
    assert process.returncode == 0, f"embed ended with {process.returncode}"
    busy = [mb for mb in workers if mb > 0]
    half = len(busy) // 2
    first, second = max(busy[:half], default=0.0), max(busy[half:], default=0.0)
    return time.monotonic() - started, max(driver), first, second, max(own)


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


def _own_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss) / 1e6
    except psutil.Error:
        return 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--data", type=Path, help="gzipped JSON lines with a text each; else four words a document")
    parser.add_argument("--model", help="a recipe or a folder; else a tiny random model")
    parser.add_argument("--rows-per-fragment", type=int)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    main(parser.parse_args())
