"""index: an embeddings dataset in, searchable shards with measured recall out.

    python -m jobs index configs/index/quickstart.yaml

Run it again after a crash: shards that are built stay. Run it after a further embed: only what has changed is done.
Exit code 3 where searches find less than recall_target.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from jobs.indexing.config import IndexConfig as Config
from jobs.indexing.outcome import IndexLog, check_recall
from jobs.indexing.place import Place
from jobs.indexing.present import Present, find_present, without_lost_training
from jobs.indexing.small import place_for
from jobs.indexing.source import Embeddings, at_work, identify_index, open_embeddings, queries_name
from jobs.indexing.steps import build_changes, plan_changes, prepare, publish_after
from operators.index.by_list import remove_scattered
from operators.index.group import live_mask
from operators.index.planning import shard_rows
from operators.index.snapshot import (
    IndexIdentity,
    IndexSnapshot,
    ShardRecord,
    TrainedRecord,
    claim_index,
)
from operators.index.updating import UpdatePlan, drift, mean_distance, plan_update
from operators.storage import Location, locate

logger = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Build or update the index, measure it, publish a snapshot; returns the exit code."""
    source = open_embeddings(config)
    index = locate(config.output.path, config.output.storage_options)
    with at_work(source, index):
        return _run(config, source, index)


def _run(config: Config, source: Embeddings, index: Location) -> int:
    present = find_present(index, config.update.check)
    identity = identify_index(config, source, index)
    is_sparse = bool(identity.sparse_dim)
    rows_per_shard = shard_rows(config.shards, identity.spec, source.records, config.recall.queries, is_sparse)
    log = IndexLog(config, index, identity, source)
    name = queries_name(config, source)
    previous = present.snapshot
    if previous is not None and present.is_sound and source.is_held_by(previous) and log.is_measured(previous, name):
        log.nothing_to_do(previous)
        return check_recall(config, previous)
    with place_for(config, source, index, rows_per_shard, previous) as place:
        if identity.dim:
            snapshot = _make(place, config, source, index, identity, present, rows_per_shard, name, log)
        else:
            snapshot = _make_sparse(place, config, source, index, identity, present, rows_per_shard, log)
    if identity.sharding == "list":
        remove_scattered(index)
    log.finish(snapshot)
    return check_recall(config, snapshot)


def _make(
    place: Place,
    config: Config,
    source: Embeddings,
    index: Location,
    identity: IndexIdentity,
    present: Present,
    rows_per_shard: int,
    name: str,
    log: IndexLog,
) -> IndexSnapshot:
    """Train where nothing is trained, build what is missing, measure, publish."""
    from jobs.indexing.pipeline import measure

    present = without_lost_training(index, present, log)
    before = present.snapshot.trained if present.snapshot is not None else None
    trained, setup = prepare(place, config, source, index, identity, before, present.next_generation, name)
    plan = plan_changes(place, config, source, setup, present, rows_per_shard)
    shards = build_changes(place, config, identity, setup, trained, plan, present.snapshot, log)
    moved = drift(trained.distance, shards)
    if moved > config.update.max_drift:
        log.say(
            f"training anew: vectors lie {moved:.0%} farther from their centroids than when the index was trained "
            f"(update.max_drift {config.update.max_drift:.0%})"
        )
        trained, setup = prepare(place, config, source, index, identity, None, trained.generation + 1, name)
        plan = plan_update(None, source.records, {}, rows_per_shard, config.update)
        shards = build_changes(place, config, identity, setup, trained, plan, None, log)
    trained = trained if trained.distance else trained.model_copy(update={"distance": mean_distance(shards)})
    snapshot = _snapshot(source, present, identity, trained, shards, plan).model_copy(update={"queries": name})
    log.say("measuring recall")
    live: list[NDArray[np.bool_] | None] = [live_mask(index, shard) for shard in snapshot.shards]
    return publish_after(index, snapshot.model_copy(update={"recall": measure(place, config, setup, snapshot, live)}))


def _make_sparse(
    place: Place,
    config: Config,
    source: Embeddings,
    index: Location,
    identity: IndexIdentity,
    present: Present,
    rows_per_shard: int,
    log: IndexLog,
) -> IndexSnapshot:
    """Build what is missing and publish: nothing is trained, and searches are exact."""
    claim_index(index, identity)
    setup = source.setup(config, index, identity, None)
    plan = plan_changes(place, config, source, setup, present, rows_per_shard)
    shards = build_changes(place, config, identity, setup, None, plan, present.snapshot, log)
    return publish_after(index, _snapshot(source, present, identity, None, shards, plan))


def _snapshot(
    source: Embeddings,
    present: Present,
    identity: IndexIdentity,
    trained: TrainedRecord | None,
    shards: Sequence[ShardRecord],
    plan: UpdatePlan,
) -> IndexSnapshot:
    snapshot = IndexSnapshot(
        number=present.number + 1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        identity=identity,
        trained=trained,
        embeddings_snapshot=source.snapshot.number,
        fragments=source.keys,
        shards=tuple(shard for shard in shards if shard.live_rows),
        replaced=plan.replaced,
        tracks_rows=True,
    )
    assert source.is_held_by(snapshot), f"{snapshot.num_vectors:,} of {source.num_vectors:,} vectors are indexed"
    return snapshot
