"""Shards beside plain faiss on the same vectors: build speed, memory, recall, search speed, one thread each.

    python -m benchmarks.index                          # 200,000 generated vectors of 384 components
    python -m benchmarks.index --vectors 1000000
    python -m benchmarks.index --dataset out/vectors    # an embeddings dataset, such as real ones

Every figure comes from a process of its own that runs one side alone; sides alternate. Plain faiss gets the vectors
from memory with nothing around: train, add, write_index, search. Ours reads the dataset's Parquet files, checks every
vector, writes the id map, hashes, uploads and reads back; the exact neighbours (which plain faiss does not find) are
timed apart. Both use the same trained index. CPU seconds, since machines are shared. Columns: "build" is train + add +
write; "ratio" ours to plain of that, "add" without training, "+read" if plain faiss too had to read the Parquet files.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from operators.index.building import BuildSetup, FragmentPart, ShardPlan, build_shard
from operators.index.library import faiss, kernel, use_threads
from operators.index.open import Index
from operators.index.snapshot import IndexSnapshot, Settings, publish_index, read_index
from operators.index.spec import make_index, take_apart
from operators.index.trained import open_trained, store_trained, stored_trained
from operators.index.training import Training, num_lists, train
from operators.index.truth import nearest
from operators.index.vectors import read_blocks
from operators.storage import Location
from operators.storage.cache import Cache
from operators.store.dataset import read_identity
from operators.store.snapshots import latest_snapshot
from tests.index_building import all_vectors, index_identity
from tests.vector_datasets import Documents, clustered, write_dataset

K, BATCH = 10, 1000


def kinds(count: int, dim: int) -> list[tuple[str, Settings]]:
    """Factory strings with the settings to compare at."""
    lists = 1024 if count <= 400_000 else 4096
    ivf = Settings(nprobe=16, k_factor=10)
    small = [
        ("Flat", Settings()),
        (f"IVF{lists},Flat", ivf),
        (f"IVF{lists},SQfp16", ivf),
        (f"IVF{lists},SQ8", ivf),
        (f"IVF{lists},PQ{dim // 8}", ivf),
        (f"IVF{lists},PQ{dim // 4}x4fs,Refine(SQ8)", ivf),
        (f"IVF{lists},PQ{dim // 4}x4fs,RFlat", ivf),
        (f"RR{dim},IVF{lists},RaBitQfs,Refine(SQfp16)", ivf),
    ]
    return [*small, ("HNSW32", Settings(ef=128))] if count <= 250_000 else small


def main() -> None:
    """Run all kinds, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--dataset", help="an embeddings dataset in place of generated vectors")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=20_000, help="queries of the large batch")
    parser.add_argument("--only", help="part of a factory string")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_child(json.loads(options.child))))
        return
    with tempfile.TemporaryDirectory(prefix="bench-index-") as folder:
        dataset = options.dataset or generate(folder, options.vectors, options.dim)
        identity = read_identity(Location(dataset))
        assert identity is not None, f"no dataset at {dataset}"
        count = sum(record.chunks for record in latest_snapshot(Location(dataset)).records)
        print(f"{count:,} x {identity.dim}, {kernel().name} kernels, faiss {faiss.__version__}, {platform.processor()}")
        print(HEADER, flush=True)
        for factory, settings in kinds(count, identity.dim):
            if options.only is None or options.only in factory:
                compare(Path(folder), dataset, factory, settings, options.rounds, options.batch)


HEADER = (
    f"{'spec':36} {'recall':>13} {'build vec/s/core':>15} {'ratio':>5} {'add':>5} {'+read':>5} {'truth':>5} "
    f"{'peak MB':>11} "
    f"{'search ms':>13} {'ratio':>6} {'table':>6} {'batch':>9}"
)


def generate(folder: str, count: int, dim: int) -> str:
    """A dataset of clustered vectors in 20 files, the last rows held out as queries."""
    documents = Documents.of(clustered(count, dim))
    edges = [count * i // 20 for i in range(21)]
    files = [(f"{i}.jsonl", documents.take(slice(edges[i], edges[i + 1]))) for i in range(20)]
    write_dataset(f"{folder}/vectors", files, rows_per_fragment=16384)
    return f"{folder}/vectors"


def compare(folder: Path, dataset: str, factory: str, settings: Settings, rounds: int, batch: int) -> None:
    """Train once, then run both sides in turn and print their medians."""
    name = "".join(c if c.isalnum() else "-" for c in factory)
    task = {
        "dataset": dataset,
        "index": str(folder / name),
        "factory": factory,
        "settings": settings.model_dump(),
        "batch": batch,
    }
    train_seconds = child({**task, "side": "train"})["train"]
    results: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for number in range(rounds):
        for side in ("plain", "ours"):
            results[side].append(child({**task, "side": side, "round": number}))
    plain, ours = (
        {key: statistics.median(result[key] for result in results[side]) for key in results[side][0]}
        for side in ("plain", "ours")
    )

    def ratio(key: str) -> float:
        """Median of the rounds' ratios, plain to ours: above 1 is faster than plain."""
        return statistics.median(p[key] / o[key] for p, o in zip(results["plain"], results["ours"], strict=True))

    count = plain["count"]
    pairs = list(zip(results["plain"], results["ours"], strict=True))
    whole = statistics.median((train_seconds + p["build"]) / (train_seconds + o["build"]) for p, o in pairs)
    read = statistics.median((p["build"] + p["read"]) / o["build"] for p, o in pairs)
    print(
        f"{factory:36} {plain['recall']:.4f} {ours['recall']:.4f} {count / (train_seconds + plain['build']):7,.0f} "
        f"{count / (train_seconds + ours['build']):7,.0f} {whole:5.2f} {ratio('build'):5.2f} {read:5.2f} "
        f"{ours['truth'] / ours['build']:5.0%} "
        f"{plain['peak']:5,.0f} {ours['peak']:5,.0f} {plain['search']:6.3f} {ours['search']:6.3f} "
        f"{ratio('search'):6.2f} {ours['table']:6.3f} {plain['large'] / ours['large']:8.1f}x",
        flush=True,
    )


def child(task: dict[str, Any]) -> dict[str, float]:
    """Run one side in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.index", "--child", json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def run_child(task: dict[str, Any]) -> dict[str, float]:
    """What a child process does."""
    use_threads(2 if task["side"] == "train" else 1)
    dataset, index = Location(task["dataset"]), Location(task["index"])
    identity = index_identity(dataset, task["factory"], "cosine")
    stored = read_identity(dataset)
    assert stored is not None, "there is a dataset"
    if task["side"] == "train":
        vectors = all_vectors(dataset, identity.space)
        lists = num_lists(make_index(identity.spec), identity.spec)
        rows = np.random.default_rng(0).choice(len(vectors), min(len(vectors), max(lists * 50, 65536)), replace=False)
        started = time.process_time()
        trained = train(identity.spec, vectors[rows], Training())
        seconds = time.process_time() - started
        store_trained(index, 1, trained, identity.spec)
        return {"train": seconds}
    if task["side"] == "plain":
        return run_plain(task, index, dataset, identity)
    return run_ours(task, index, dataset, identity)


def held_out(vectors: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Queries near the documents: mixtures of two, which are none of them."""
    rng = np.random.default_rng(1)
    first, second = vectors[rng.integers(0, len(vectors), count)], vectors[rng.integers(0, len(vectors), count)]
    mixed = (0.8 * first + 0.2 * second + 0.02 * rng.standard_normal(first.shape)).astype(np.float32)
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def run_plain(task: dict[str, Any], index: Location, dataset: Location, identity: Any) -> dict[str, float]:
    """faiss alone, from vectors in memory."""
    started = time.process_time()
    vectors = filled(dataset, identity)
    read = time.process_time() - started
    before = reset_peak()
    built = faiss.read_index(f"{index.url}/trained.faiss")
    started = time.process_time()
    built.add(vectors)
    faiss.write_index(built, f"{index.url}/plain.faiss")
    build = time.process_time() - started
    peak = peak_mb() - before  # the vectors themselves are in memory for the benchmark's sake
    set_up(built, Settings(**task["settings"]))
    queries, large = held_out(vectors, BATCH), held_out(vectors, task["batch"])
    search, (_, rows) = timed(lambda: built.search(queries, K))
    seconds, _ = timed(lambda: built.search(large, K)) if has_lists(built) else (1.0, None)
    _, exact = nearest(queries, vectors, K, "cosine")
    return {
        "count": len(vectors),
        "read": read,
        "build": build,
        "peak": peak,
        "search": 1000 * search / BATCH,
        "large": seconds,
        "recall": recall(rows, exact),
    }


def run_ours(task: dict[str, Any], index: Location, dataset: Location, identity: Any) -> dict[str, float]:
    """The same by our builder and searcher."""
    stored, snapshot = read_identity(dataset), latest_snapshot(dataset)
    assert stored is not None, "there is a dataset"
    setup = BuildSetup(index, dataset, stored, identity.space, stored.keep, None)
    before = reset_peak()
    record = stored_trained(index, 1)
    plan = ShardPlan.of([FragmentPart(r) for r in snapshot.records], f"{record.sha256}-{task['round']}", ())
    trained = open_trained(index, record, identity.spec, Cache.at(None))
    started = time.process_time()
    shard = build_shard(plan, trained, setup)
    build = time.process_time() - started
    peak = peak_mb() - before
    made = IndexSnapshot(
        number=task["round"] + 1,
        created="",
        identity=identity,
        trained=record,
        embeddings_snapshot=snapshot.number,
        fragments=(),
        shards=(shard,),
    )
    publish_index(index, made)
    opened = Index(index, read_index(index, made.number), threads=1)
    settings = Settings(**task["settings"])
    vectors = all_vectors(dataset, identity.space)
    queries, large = held_out(vectors, BATCH), held_out(vectors, task["batch"])
    search, found = timed(lambda: opened.find(queries, K, settings))
    table, _ = timed(lambda: opened.search(queries, K, settings=settings))
    is_list = has_lists(trained.index)
    seconds, _ = timed(lambda: opened.find(large, K, settings)) if is_list else (1.0, None)
    truth, (_, exact) = timed(lambda: nearest(queries, vectors, K, "cosine"), repeat=1)
    return {
        "count": len(vectors),
        "build": build,
        "peak": peak,
        "search": 1000 * search / BATCH,
        "table": 1000 * table / BATCH,
        "large": seconds,
        "truth": truth,
        "recall": recall(found.ids_QK, exact),
    }


def filled(dataset: Location, identity: Any) -> np.ndarray[Any, Any]:
    """All vectors in one array that is filled fragment by fragment, so that reading peaks at no more than they take."""
    stored, records = read_identity(dataset), latest_snapshot(dataset).records
    assert stored is not None, "there is a dataset"
    vectors, end = np.empty((sum(r.chunks for r in records), identity.dim), np.float32), 0
    for record in records:
        for block in read_blocks(dataset, stored, identity.space, record, []):
            vectors[end : end + len(block.vectors)] = block.vectors
            end += len(block.vectors)
    return vectors


def set_up(index: Any, settings: Settings) -> None:
    """Set a plain faiss index's search parameters."""
    parts = take_apart(index)
    if parts.is_ivf:
        parts.core.nprobe = settings.nprobe
    if isinstance(parts.core, faiss.IndexHNSW):
        parts.core.hnsw.efSearch = settings.ef
    if parts.refine is not None:
        faiss.downcast_index(index).k_factor = settings.k_factor


def has_lists(index: Any) -> bool:
    """Whether a large batch is worth timing."""
    return take_apart(index).is_ivf


def timed(work: Any, repeat: int = 3) -> tuple[float, Any]:
    """The least CPU seconds of some runs, and the result."""
    seconds = []
    for _ in range(repeat):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return min(seconds), result


def recall(rows: Any, exact: Any) -> float:
    """Share of the exact neighbours that were found."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]))


def reset_peak() -> float:
    """Begin a new peak of this process's memory, and say what it holds now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    """Peak memory of this process; getrusage would count what its parent had before it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
