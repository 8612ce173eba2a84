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

from cluster.session import connect
from jobs.index_config import IndexConfig as Config
from jobs.index_outcome import IndexLog, check_recall
from jobs.index_source import Embeddings, identify_index, open_embeddings, queries_name
from operators.index.building import BuildSetup, ShardPlan
from operators.index.by_list import remove_scattered
from operators.index.group import live_mask
from operators.index.held_out import load_held_out
from operators.index.planning import shard_rows
from operators.index.snapshot import (
    IndexIdentity,
    IndexSnapshot,
    ShardRecord,
    TrainedRecord,
    index_numbers,
    publish_index,
    read_index,
)
from operators.index.trained import has_trained, stored_trained
from operators.index.updating import UpdatePlan, bury, drift, mean_distance, plan_update, related_fragments
from operators.storage import Location, locate

logger = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Build or update the index, measure it, publish a snapshot; returns the exit code."""
    source = open_embeddings(config)
    index = locate(config.output.path, config.output.storage_options)
    identity = identify_index(config, source, index)
    rows_per_shard = shard_rows(config.shards, identity.spec, source.records, config.recall.queries)
    previous = read_index(index) if index_numbers(index) else None
    log = IndexLog(config, index, identity, source)
    name = queries_name(config, source)
    if previous is not None and previous.fragments == source.keys and log.is_measured(previous, name):
        log.nothing_to_do(previous)
        return check_recall(config, previous)
    with connect(local_cpus=config.compute.local_cpus):
        snapshot = _make(config, source, index, identity, previous, rows_per_shard, name, log)
    if identity.sharding == "list":
        remove_scattered(index)
    log.finish(snapshot)
    return check_recall(config, snapshot)


def _make(
    config: Config,
    source: Embeddings,
    index: Location,
    identity: IndexIdentity,
    previous: IndexSnapshot | None,
    rows_per_shard: int,
    name: str,
    log: IndexLog,
) -> IndexSnapshot:
    """Train where nothing is trained, build what is missing, measure, publish."""
    from jobs.index_pipeline import measure

    generation = previous.trained.generation if previous is not None else 1
    trained, setup = _prepare(config, source, index, identity, generation, name)
    if previous is not None and previous.trained.sha256 == trained.sha256:
        trained = previous.trained
    plan = _plan(config, source, setup, previous, rows_per_shard)
    shards = _build(config, identity, setup, trained, plan, previous, log)
    moved = drift(trained.distance, shards)
    if moved > config.update.max_drift:
        log.say(
            f"training anew: vectors lie {moved:.0%} farther from their centroids than when the index was trained "
            f"(update.max_drift {config.update.max_drift:.0%})"
        )
        trained, setup = _prepare(config, source, index, identity, generation + 1, name)
        plan = plan_update(None, source.records, {}, {}, rows_per_shard, config.update)
        shards = _build(config, identity, setup, trained, plan, None, log)
    trained = trained if trained.distance else trained.model_copy(update={"distance": mean_distance(shards)})
    snapshot = IndexSnapshot(
        number=(index_numbers(index) or [0])[-1] + 1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        identity=identity,
        trained=trained,
        embeddings_snapshot=source.snapshot.number,
        fragments=source.keys,
        shards=tuple(shard for shard in shards if shard.live_rows),
        replaced=plan.replaced,
        queries=name,
    )
    log.say("measuring recall")
    live: list[NDArray[np.bool_] | None] = [live_mask(index, shard) for shard in snapshot.shards]
    return _publish(index, snapshot.model_copy(update={"recall": measure(config, setup, snapshot, live)}))


def _prepare(
    config: Config, source: Embeddings, index: Location, identity: IndexIdentity, generation: int, name: str
) -> tuple[TrainedRecord, BuildSetup]:
    """The trained index of a generation and the held-out queries, made where they are missing."""
    from jobs.index_pipeline import train_once
    from jobs.index_queries import store_real_queries

    setup = source.setup(config, index, identity, None)
    if config.queries is not None and load_held_out(index, name, config.recall.k) is None:
        store_real_queries(config.queries, config.recall.queries, source, setup, name)
    has_queries = load_held_out(index, name, config.recall.k) is not None
    if has_trained(index, generation) and has_queries:
        trained = stored_trained(index, generation)
    else:
        drawn = None if has_queries else name
        trained = train_once(config, identity, setup, source.records, generation, drawn)
    return trained, source.setup(config, index, identity, load_held_out(index, name, config.recall.k))


def _plan(
    config: Config, source: Embeddings, setup: BuildSetup, previous: IndexSnapshot | None, rows_per_shard: int
) -> UpdatePlan:
    """What the new embeddings change; the rows of changed files are compared, nothing else is read."""
    from jobs.index_pipeline import diff_shards

    if previous is None:
        return plan_update(None, source.records, {}, {}, rows_per_shard, config.update)
    gone = source.gone_since(previous)
    added = [record for record in source.records if record.key not in set(previous.fragments)]
    related = related_fragments(gone, added)
    diffs = diff_shards(setup, previous, gone, related) if gone else {}
    return plan_update(previous, source.records, diffs, related, rows_per_shard, config.update)


def _build(
    config: Config,
    identity: IndexIdentity,
    setup: BuildSetup,
    trained: TrainedRecord,
    plan: UpdatePlan,
    previous: IndexSnapshot | None,
    log: IndexLog,
) -> list[ShardRecord]:
    """The shards that stay, with their dead rows marked, and the new ones."""
    from jobs.index_pipeline import build_list_shards, build_shards

    kept: Sequence[ShardRecord] = previous.shards if previous is not None else ()
    shards = [bury(setup.index, kept[n], plan.dead[n]) if n in plan.dead else kept[n] for n in plan.kept]
    plans = [ShardPlan.of(group, trained.sha256, identity.keep) for group in plan.groups]
    build = build_list_shards if identity.sharding == "list" and plans and not plan.is_patch else build_shards
    records: list[ShardRecord] = []
    for built in build(config, identity.spec, setup, trained, plans):
        records.append(built.record)
        log.built(built.record, built.seconds, len(records), len(plans))
    order = {plan.key: (i, 0) for i, plan in enumerate(plans)}
    return [*shards, *sorted(records, key=lambda record: record.lists or order[record.key])]


def _publish(index: Location, snapshot: IndexSnapshot) -> IndexSnapshot:
    """Make the snapshot the newest, after whatever another run has published meanwhile."""
    while not publish_index(index, snapshot):
        latest = read_index(index)
        if latest.embeddings_snapshot > snapshot.embeddings_snapshot or latest.fragments == snapshot.fragments:
            logger.info("snapshot %d was published by another run meanwhile and is as new", latest.number)
            return latest
        snapshot = snapshot.model_copy(update={"number": latest.number + 1})
    return snapshot
