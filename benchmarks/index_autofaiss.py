"""A whole index build beside autofaiss on the same vectors, two threads each.

    python -m venv /somewhere/autofaiss && /somewhere/autofaiss/bin/pip install autofaiss 'pyarrow<20' 'pandas<3'
    python -m benchmarks.index_autofaiss --python /somewhere/autofaiss/bin/python [--vectors 200000]

autofaiss 2.18 needs numpy below 2, so it runs in an environment of its own. It gets .npy files, the format it reads
fastest; ours gets the embeddings dataset and writes a shard with its id map and hashes. Both train, add and write in
one process; autofaiss also chooses search parameters, which takes it some seconds. Rounds alternate. It compares by
L2: for inner products it refuses most factory strings, scalar quantizers and FastScan it cannot tune, and its OPQ
needs an older faiss. Recall is of 1,000 queries at the same nprobe.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index import BATCH, K, generate, held_out, recall, set_up
from operators.index import open_index
from operators.index.library import faiss, kernel
from operators.index.snapshot import Settings
from operators.index.truth import nearest
from operators.storage import Location
from tests.index_building import all_vectors, build_index, index_identity

_AUTOFAISS = """
import json, resource, sys, time
from autofaiss import build_index
task = json.loads(sys.argv[1])
started, cpu = time.monotonic(), time.process_time()
build_index(task["folder"], index_path=task["out"], index_infos_path=task["out"] + ".json", index_key=task["factory"],
            metric_type="l2", nb_cores=2, max_index_memory_usage="8G", current_memory_available="12G", verbose=40)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": time.monotonic() - started, "cpu": time.process_time() - cpu, "peak": peak}))
"""


def main() -> None:
    """Run both sides in turn and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="the interpreter that has autofaiss")
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_ours(json.loads(options.child))))
        return
    if not options.python:
        parser.error("give --python, the interpreter of an environment with autofaiss")
    with tempfile.TemporaryDirectory(prefix="bench-autofaiss-") as folder:
        compare(Path(folder), options)


def compare(folder: Path, options: Any) -> None:
    """Generate vectors, then build with both for each factory string."""
    dataset = generate(str(folder), options.vectors, options.dim)
    vectors = all_vectors(Location(dataset), index_identity(Location(dataset), "Flat", "cosine").space)
    (folder / "npy").mkdir()
    for number, part in enumerate(np.array_split(vectors, 10)):
        np.save(folder / "npy" / f"{number:03}.npy", part)
    queries = held_out(vectors, BATCH)
    _, exact = nearest(queries, vectors, K, "cosine")
    print(f"{len(vectors):,} x {options.dim}, ours with {kernel().name} kernels, two threads; autofaiss / ours")
    for factory, settings in (
        ("IVF1024,Flat", Settings(nprobe=16)),
        ("HNSW32", Settings(ef=128)),
    ):
        rounds = [round_of(folder, dataset, factory, number, options.python) for number in range(options.rounds)]
        found = [recall_of(rounds[-1][side]["path"], settings, queries, exact) for side in (0, 1)]
        theirs, ours = ([r[side] for r in rounds] for side in (0, 1))
        wall = np.median([t["seconds"] / o["seconds"] for t, o in zip(theirs, ours, strict=True)])
        cpu = np.median([t["cpu"] / o["cpu"] for t, o in zip(theirs, ours, strict=True)])
        print(
            f"{factory:28} recall {found[0]:.4f} {found[1]:.4f}   "
            f"seconds {np.median([t['seconds'] for t in theirs]):6.1f} {np.median([o['seconds'] for o in ours]):6.1f} "
            f"({wall:.2f}x, CPU {cpu:.2f}x)   peak MB {theirs[-1]['peak']:,.0f} {ours[-1]['peak']:,.0f}",
            flush=True,
        )


def round_of(folder: Path, dataset: str, factory: str, number: int, python: str) -> list[dict[str, Any]]:
    """One build by each."""
    name = f"{''.join(c if c.isalnum() else '-' for c in factory)}-{number}"
    theirs = {"folder": str(folder / "npy"), "out": str(folder / f"{name}.theirs"), "factory": factory}
    ours = {"dataset": dataset, "index": str(folder / f"{name}.ours"), "factory": factory}
    sides = (
        ([python, "-c", _AUTOFAISS, json.dumps(theirs)], theirs["out"]),
        ([sys.executable, "-m", "benchmarks.index_autofaiss", "--child", json.dumps(ours)], None),
    )
    results = []
    for command, path in sides:
        environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        results.append({"path": path, **json.loads(done.stdout.strip().splitlines()[-1])})
    return results


def run_ours(task: dict[str, Any]) -> dict[str, Any]:
    """Sample, train, build one shard and open it, in a process of its own."""
    import resource

    started, cpu = time.monotonic(), time.process_time()
    build_index(Location(task["index"]), Location(task["dataset"]), task["factory"])
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"path": task["index"], "seconds": seconds, "cpu": cpu, "peak": peak}


def recall_of(path: str, settings: Settings, queries: Any, exact: Any) -> float:
    """Recall of an index folder, or of a faiss file, which plain faiss searches."""
    if Path(path).is_dir():
        return recall(open_index(path).find(queries, K, settings).ids_QK, exact)
    index = faiss.read_index(path)
    set_up(index, settings)
    return recall(index.search(queries, K)[1], exact)


if __name__ == "__main__":
    main()
