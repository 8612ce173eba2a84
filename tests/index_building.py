"""Indexes built in this process, without Ray, as the index job builds them on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from operators.index.building import BuildSetup, FragmentPart, ShardPlan, build_shard
from operators.index.by_list import BUCKETS_PER_SHARD, Scatter, gather, plan_list_shards, scatter
from operators.index.library import use_threads
from operators.index.open import Index
from operators.index.snapshot import IndexIdentity, IndexSnapshot, ShardRecord, TrainedRecord, publish_index, read_index
from operators.index.spec import Metric
from operators.index.trained import has_trained, open_trained, store_trained, stored_trained
from operators.index.training import Training, train
from operators.index.truth import HeldOut
from operators.index.vectors import Vectors, VectorSpace, read_blocks
from operators.storage import Location
from operators.storage.cache import Cache
from operators.store.dataset import read_identity
from operators.store.snapshots import latest_snapshot
from tests.vector_datasets import KEEP

TRAINING = Training(vectors_per_list=1)


def build_index(
    index: Location,
    dataset: Location,
    factory: str,
    metric: Metric = "cosine",
    shards: int = 1,
    by: Literal["document", "list"] = "document",
    queries: HeldOut | None = None,
) -> Index:
    """Build an index of a dataset's newest snapshot and open it; an index that is trained there already is used."""
    use_threads(2)
    identity = index_identity(dataset, factory, metric, by)
    setup = build_setup(index, dataset, identity, queries)
    snapshot = latest_snapshot(dataset)
    trained = train_on_all(setup, identity) if identity.dim else None
    groups = [
        [FragmentPart(snapshot.records[i]) for i in part]
        for part in np.array_split(np.arange(len(snapshot.records)), shards)
    ]
    plans = [ShardPlan.of(group, trained.sha256 if trained else "", KEEP.names) for group in groups if group]
    records = build_plans(plans, setup, trained, identity)
    made = IndexSnapshot(
        number=1,
        created="",
        identity=identity,
        trained=trained,
        embeddings_snapshot=snapshot.number,
        fragments=tuple(r.key for r in snapshot.records),
        shards=tuple(records),
    )
    assert publish_index(index, made)
    return Index(index, read_index(index), threads=2)


def index_identity(
    dataset: Location, factory: str, metric: Metric, by: Literal["document", "list"] = "document"
) -> IndexIdentity:
    """The identity of an index of this dataset."""
    identity = read_identity(dataset)
    assert identity is not None, "there is a dataset"
    return IndexIdentity(
        requested=factory,
        factory=factory,
        why="",
        metric=metric,
        sharding=by,
        dim=identity.dim,
        dtype=identity.dtype,
        scale=identity.scale,
        fingerprint=identity.fingerprint,
        model=identity.model,
        embeddings=dataset.url,
        keep=tuple(identity.keep.names),
        seed=0,
        sparse_dim=identity.sparse_dim,
    )


def build_setup(
    index: Location, dataset: Location, identity: IndexIdentity, queries: HeldOut | None = None
) -> BuildSetup:
    """What builders are told."""
    stored = read_identity(dataset)
    assert stored is not None, "there is a dataset"
    return BuildSetup(index, dataset, stored, identity.space, KEEP, queries, sparse_dim=identity.sparse_dim)


def build_plans(
    plans: Sequence[ShardPlan], setup: BuildSetup, trained: TrainedRecord | None, identity: IndexIdentity
) -> list[ShardRecord]:
    """Build shards one after the other."""

    def opened() -> Any:
        return open_trained(setup.index, trained, identity.spec, Cache.at(None)) if trained is not None else None

    if identity.sharding == "document":
        return [build_shard(plan, opened(), setup) for plan in plans]
    assert trained is not None, "shards by list have something trained"
    scattered = [scatter(Scatter(plan, BUCKETS_PER_SHARD * len(plans)), opened(), setup) for plan in plans]
    shards = plan_list_shards(scattered, len(plans), opened().num_lists, trained.sha256)
    return [gather(plan, opened(), setup) for plan in shards]


def train_on_all(setup: BuildSetup, identity: IndexIdentity) -> TrainedRecord:
    """Train on every vector of the dataset, unless the index is trained already."""
    if has_trained(setup.index, 1):
        return stored_trained(setup.index, 1)
    vectors = all_vectors(setup.dataset, identity.space)
    return store_trained(setup.index, 1, train(identity.spec, vectors, TRAINING), identity.spec)


def all_vectors(dataset: Location, space: VectorSpace) -> Vectors:
    """The vectors of the newest snapshot, in order."""
    identity = read_identity(dataset)
    assert identity is not None, "there is a dataset"
    records = latest_snapshot(dataset).records
    blocks = [block for record in records for block in read_blocks(dataset, identity, space, record, ["doc_id"])]
    return np.concatenate([block.vectors for block in blocks])
