"""The whole embed job against the bare engine on the same texts: what reading, Ray, writing and committing cost.

    python -m benchmarks.pipeline --data FILE.jsonl.gz [--rows N] [--rounds 2]

Bare engine: as many processes with one thread as there are workers, texts and token ids in memory, no Ray. Pipeline:
`python -m jobs embed` in a process of its own. They take turns; `steady` counts from the first fragment on storage,
`whole` includes the start of Ray and the loading of the model. The ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.engine import OURS, RECIPES, Contender, count, machine, read_texts, start
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
    bare_speeds, steady_speeds, whole_speeds = [], [], []
    for number in range(arguments.rounds):
        bare_speeds.append(_bare(arguments, texts, lengths_N))
        steady, whole = _pipeline(arguments, texts)
        steady_speeds.append(steady)
        whole_speeds.append(whole)
        print(
            f"round {number}: bare {bare_speeds[-1]:,.0f}, steady {steady:,.0f}, whole {whole:,.0f} tokens/s",
            flush=True,
        )
    for name, speeds in (("steady", steady_speeds), ("whole", whole_speeds)):
        ratio = statistics.median(s / b for s, b in zip(speeds, bare_speeds, strict=True))
        print(f"pipeline ({name}) / bare engine: {ratio:.3f}")


def _bare(arguments: argparse.Namespace, texts: list[str], lengths_N: NDArray[np.int64]) -> float:
    arguments.batch_tokens = None
    pool, processes = start(Contender(OURS, arguments.dtype, arguments.workers, 1), texts, lengths_N, arguments)
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
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        report = json.loads((folder / "vectors" / "report.json").read_text())
        return float(report["steady_tokens_per_second"]), float(report["counts"]["tokens"]) / seconds


if __name__ == "__main__":
    main()
