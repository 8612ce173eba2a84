"""Peak memory of the index job's builders, while the dataset grows twentyfold and the shards stay as large.

    python -m benchmarks.index_memory

Runs the job as its user does and reads the peak of every builder's process from /proc.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from tests.jobs.running import start_job
from tests.vector_datasets import Documents, clustered, write_dataset

DIM, SHARD_ROWS, BUDGET = 256, 50_000, 700 << 20
BUILDER = "ray::build"


def main() -> None:
    """Index 50,000 and 1 million vectors in shards of 50,000."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, nargs="+", default=[50_000, 1_000_000])
    for count in parser.parse_args().vectors:
        with tempfile.TemporaryDirectory(prefix="bench-memory-") as folder:
            builders, driver = peaks(Path(folder), count)
            print(
                f"{count:,} vectors in {count // SHARD_ROWS} shards: {len(builders)} builders peak at "
                f"{max(builders):,.0f} MB (median {statistics.median(builders):,.0f}; budget {BUDGET / 2**20:,.0f}), "
                f"driver at {driver:,.0f} MB",
                flush=True,
            )


def peaks(folder: Path, count: int) -> tuple[list[float], float]:
    """Peak MB of each builder and of the driver of one run."""
    documents = Documents.of(clustered(count, DIM))
    parts = [documents.take(slice(i, i + 50_000)) for i in range(0, count, 50_000)]
    write_dataset(str(folder / "vectors"), [(f"{i}.jsonl", part) for i, part in enumerate(parts)], "float32", 10_000)
    config = {
        "embeddings": str(folder / "vectors"),
        "output": {"path": str(folder / "index")},
        "spec": "IVF1024,SQ8",
        "recall_target": 0.5,
        "shards": {"rows": SHARD_ROWS, "memory_bytes": BUDGET},
    }
    (folder / "index.yaml").write_text(yaml.safe_dump(config))
    process = start_job("index", folder / "index.yaml")
    found: dict[int, float] = {}
    driver = 0.0
    while process.poll() is None:
        time.sleep(0.05)
        driver = max(driver, _peak(process.pid))
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if child.cmdline()[:1] and child.cmdline()[0].startswith(BUILDER):
                    found[child.pid] = _peak(child.pid)
            except psutil.Error:
                continue
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(output)
    return list(found.values()), driver


def _peak(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


if __name__ == "__main__":
    main()
