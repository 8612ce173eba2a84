"""What an update of an index costs, beside building it anew: 1 % of the documents changed, 1 % deleted.

    python -m benchmarks.index_update [--vectors 400000]

Twice: changes in a few files (the others keep their fragments), and changes spread over all files, each of which is
then written anew. CPU seconds of one process without Ray, one thread: a rebuild trains, builds every shard and finds
the held-out queries' neighbours; an update compares rows, marks the dead and builds one further shard.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.index.building import BuildSetup, FragmentPart, ShardPlan, build_shard
from operators.index.comparing import diff_shard, plan_comparisons
from operators.index.group import live_mask
from operators.index.library import kernel, use_threads
from operators.index.open import Index
from operators.index.planning import group_fragments
from operators.index.sampling import draw, plan_draws
from operators.index.snapshot import IndexSnapshot, Settings, ShardRecord
from operators.index.trained import open_trained, store_trained
from operators.index.training import Training, sample_size, train
from operators.index.truth import HeldOut, merge_truth, read_truth
from operators.index.tuning import recall_per_query
from operators.index.updating import Update, bury, plan_update
from operators.storage import Location
from operators.storage.cache import Cache
from operators.store.dataset import read_identity
from operators.store.snapshots import Snapshot
from tests.index_building import index_identity
from tests.vector_datasets import Documents, clustered, write_dataset

DIM, FILES, ROWS_PER_SHARD, K = 384, 100, 100_000, 10
FACTORY, SETTINGS = "IVF2048,SQ8", Settings(nprobe=16)


@dataclass(frozen=True)
class Made:
    """An index and what it cost."""

    snapshot: IndexSnapshot
    cpu_seconds: float
    setup: BuildSetup


def main() -> None:
    """Run both cases and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=400_000)
    options = parser.parse_args()
    use_threads(1)
    print(f"{options.vectors:,} x {DIM}, {FACTORY}, {kernel().name} kernels")
    for case in ("few files", "all files"):
        with tempfile.TemporaryDirectory(prefix="bench-update-") as folder:
            run(folder, case, options.vectors)


def run(folder: str, case: str, count: int) -> None:
    """One case: build, change, update, rebuild, compare."""
    documents = Documents.of(clustered(count, DIM))
    dataset, queries = Location(f"{folder}/vectors"), clustered(1000, DIM, seed=5)
    before = write(dataset, documents, np.ones(count, bool))
    held_out = HeldOut.of(queries, None, "benchmark", K)
    first = rebuild(Location(f"{folder}/index"), dataset, before, held_out)
    documents, alive, dead_ids = changed(documents, case)
    after = write(dataset, documents, alive)
    updated = update(first, dataset, before, after)
    fresh = rebuild(Location(f"{folder}/fresh"), dataset, after, held_out)
    found = Index(first.setup.index, updated.snapshot, threads=1).search(queries, K, settings=SETTINGS)
    print(
        f"changes in {case}: update {updated.cpu_seconds:.2f} s, rebuild {fresh.cpu_seconds:.2f} s "
        f"({updated.cpu_seconds / fresh.cpu_seconds:.1%}); recall {recall(updated):.4f} and {recall(fresh):.4f}; "
        f"{len(set(found['doc_id'].to_pylist()) & dead_ids)} deleted documents found",
        flush=True,
    )


def write(dataset: Location, documents: Documents, alive: np.ndarray[Any, Any]) -> Snapshot:
    """The documents that are alive, in files of equal size; a file's place does not move."""
    edges = [len(documents.ids) * i // FILES for i in range(FILES + 1)]
    rows = [np.arange(a, b)[alive[a:b]] for a, b in itertools.pairwise(edges)]
    return write_dataset(
        dataset.url, [(f"{i}.jsonl", documents.take(r)) for i, r in enumerate(rows)], rows_per_fragment=16384
    )


def changed(documents: Documents, case: str) -> tuple[Documents, np.ndarray[Any, Any], set[str]]:
    """1 % of the documents with other vectors, 1 % deleted: in 2 of 100 files, or anywhere."""
    count, rng = len(documents.ids), np.random.default_rng(3)
    several = count // 100
    order = rng.permutation(count) if case == "all files" else np.arange(2 * several)
    vectors, versions, alive = documents.vectors.copy(), documents.versions.copy(), np.ones(count, bool)
    vectors[order[:several]] = clustered(several, DIM, seed=9)
    versions[order[:several]] = 1
    alive[order[several : 2 * several]] = False
    dead = {documents.ids[i] for i in order[several : 2 * several]}
    return Documents(documents.ids, vectors, versions), alive, dead


def rebuild(index: Location, dataset: Location, snapshot: Snapshot, held_out: HeldOut) -> Made:
    """Sample, train, build all shards."""
    identity, stored = index_identity(dataset, FACTORY, "cosine"), read_identity(dataset)
    assert stored is not None, "there is a dataset"
    setup = BuildSetup(index, dataset, stored, identity.space, stored.keep, held_out)
    started = time.process_time()
    draws = plan_draws(snapshot.records, sample_size(identity.spec, Training()), 0, 0)
    sample = np.concatenate([draw(dataset, stored, identity.space, plan, 0).train for plan in draws])
    trained = store_trained(index, 1, train(identity.spec, sample, Training()), identity.spec)
    groups = group_fragments([FragmentPart(r) for r in snapshot.records], ROWS_PER_SHARD)
    plans = [ShardPlan.of(group, trained.sha256, identity.keep) for group in groups]
    shards = build_all(plans, setup, trained, identity)
    made = IndexSnapshot(
        number=1,
        created="",
        identity=identity,
        trained=trained,
        embeddings_snapshot=snapshot.number,
        fragments=tuple(r.key for r in snapshot.records),
        shards=tuple(shards),
    )
    return Made(made, time.process_time() - started, setup)


def build_all(plans: Sequence[ShardPlan], setup: BuildSetup, trained: Any, identity: Any) -> list[ShardRecord]:
    """Build shards one after the other."""
    return [build_shard(p, open_trained(setup.index, trained, identity.spec, Cache.at(None)), setup) for p in plans]


def update(first: Made, dataset: Location, before: Snapshot, after: Snapshot) -> Made:
    """Follow the embeddings from one snapshot to the next."""
    started = time.process_time()
    previous, index = first.snapshot, first.setup.index
    now, known = after.keys, before.keys
    gone = [r for r in before.records if r.key not in now]
    added = [r for r in after.records if r.key not in known]
    comparisons = plan_comparisons(previous, gone, added)
    diffs = {n: diff_shard(index, previous.shards[n], dataset, plan) for n, plan in comparisons.items()}
    plan = plan_update(previous, after.records, diffs, ROWS_PER_SHARD, Update())
    assert plan.is_patch, "2 % are patched"
    shards = [
        bury(index, previous.shards[n], plan.dead[n]) if n in plan.dead else previous.shards[n] for n in plan.kept
    ]
    plans = [ShardPlan.of(group, previous.trained.sha256, previous.identity.keep) for group in plan.groups]
    shards += build_all(plans, first.setup, previous.trained, previous.identity)
    changed_to = {"number": 2, "shards": tuple(shards), "fragments": tuple(r.key for r in after.records)}
    return Made(previous.model_copy(update=changed_to), time.process_time() - started, first.setup)


def recall(made: Made) -> float:
    """Recall of the held-out queries, by the neighbours that were found while the shards were built."""
    index, queries = made.setup.index, made.setup.queries
    assert queries is not None, "there are queries"
    shards = made.snapshot.shards
    truths = [read_truth(index / "recall" / f"{shard.key}.{queries.digest}.parquet") for shard in shards]
    truth = merge_truth(truths, [live_mask(index, shard) for shard in shards], K, True)
    found = Index(index, made.snapshot, threads=1).find(queries.vectors_QD, K, SETTINGS)
    return float(recall_per_query(found.ids_QK, truth, K).mean())


if __name__ == "__main__":
    main()
