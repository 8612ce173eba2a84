"""The whole embed job against the bare engine on the same texts: what reading, Ray, writing and committing cost.

    python -m benchmarks.pipeline --data FILE.jsonl.gz [--rows N] [--rounds 2]

Bare engine: as many processes with one thread as there are workers, all texts in memory and sorted by length at once,
no Ray; with token ids ready, and tokenizing too, as whoever uses the engine has to. Pipeline: `python -m jobs embed` in
a process of its own, its workers at the priority of the bare engine's, where Ray's own choice is 15 lower: beside other
work that would be another share of the machine. They take turns; `steady` counts from the first fragment on storage,
`whole` includes the start of Ray and the loading of the model. A ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.engine import OURS, OURS_FROM_TEXT, RECIPES, Contender, count, machine, read_texts, start
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec


def main() -> None:
    """Alternate the two and print each round and the medians."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, help="JSON lines (.gz) with a `text`; default: Python's standard library")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows-per-fragment", type=int, help="default: as many as a worker embeds in half a minute")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    texts = read_texts(arguments.data, arguments.rows)
    spec = embedder_spec(arguments.model, EmbedderConfig(device="cpu"), RECIPES)
    lengths_N, _ = count(spec, texts)
    print(f"{machine()}\n{len(texts):,} texts, {int(lengths_N.sum()):,} tokens")
    peers: dict[str, list[float]] = {OURS: [], OURS_FROM_TEXT: []}
    pipeline: dict[str, list[float]] = {"steady": [], "whole": []}
    for number in range(arguments.rounds):
        for engine, speeds in peers.items():
            speeds.append(_bare(engine, arguments, texts, lengths_N))
        for speeds, speed in zip(pipeline.values(), _pipeline(arguments, texts), strict=True):
            speeds.append(speed)
        measured = (f"{name} {speeds[-1]:,.0f}" for name, speeds in {**peers, **pipeline}.items())
        print(f"round {number}: {'; '.join(measured)} tokens/s", flush=True)
    for (name, speeds), (engine, bare) in itertools.product(pipeline.items(), peers.items()):
        ratio = statistics.median(s / b for s, b in zip(speeds, bare, strict=True))
        print(f"pipeline ({name}) / bare engine ({engine}): {ratio:.3f}")


def _bare(engine: str, arguments: argparse.Namespace, texts: list[str], lengths_N: NDArray[np.int64]) -> float:
    arguments.batch_tokens = None
    pool, processes = start(Contender(engine, arguments.dtype, arguments.workers, 1), texts, lengths_N, arguments)
    pool.round()
    for connection, process in zip(pool.connections, processes, strict=True):
        connection.send("stop")
        process.join()
    return float(lengths_N.sum()) / pool.wall_seconds[-1]


def _pipeline(arguments: argparse.Namespace, texts: list[str]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with gzip.open(folder / "docs.jsonl.gz", "wt", compresslevel=3) as lines:
            lines.writelines(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
        config = {
            "source": {
                "path": str(folder / "docs.jsonl.gz"),
                "id": "id",
                "rows_per_fragment": arguments.rows_per_fragment,
            },
            "model": arguments.model,
            "output": {"path": str(folder / "vectors")},
            "embedder": {"compute_dtype": arguments.dtype},
            "compute": {"workers": [arguments.workers, arguments.workers]},
            "gates": {"max_rejected_fraction": 1.0},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        started = time.perf_counter()
        command = [sys.executable, "-m", "jobs", "embed", str(folder / "config.yaml")]
        env = {"RAY_worker_niceness": "0", **os.environ}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        seconds = time.perf_counter() - started
        report = json.loads((folder / "vectors" / "report.json").read_text())
        return float(report["steady_tokens_per_second"]), float(report["counts"]["tokens"]) / seconds


if __name__ == "__main__":
    main()
