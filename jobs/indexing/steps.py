"""The steps of the index job: train once, see what has changed, build that, publish."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence

from jobs.indexing.config import IndexConfig as Config
from jobs.indexing.outcome import IndexLog
from jobs.indexing.place import Place
from jobs.indexing.present import Present
from jobs.indexing.source import Embeddings
from operators.index.building import BuildSetup, ShardPlan
from operators.index.comparing import plan_comparisons
from operators.index.held_out import load_held_out
from operators.index.integrity import find_faults
from operators.index.snapshot import (
    IndexIdentity,
    IndexSnapshot,
    ShardRecord,
    TrainedRecord,
    index_numbers,
    next_index_number,
    publish_index,
    read_index,
)
from operators.index.trained import has_trained, stored_trained, usable_generation
from operators.index.updating import UpdatePlan, can_patch, patch, plan_update
from operators.storage import Location, StorageError
from operators.storage.cache import Cache
from operators.storage.lease import using

logger = logging.getLogger(__name__)


def prepare(
    place: Place,
    config: Config,
    source: Embeddings,
    index: Location,
    identity: IndexIdentity,
    before: TrainedRecord | None,
    first_generation: int,
    name: str,
) -> tuple[TrainedRecord, BuildSetup]:
    """The trained index and the held-out queries, made where they are missing.

    `before` is the trained index of the snapshot that is there; without one it is that of the first generation from
    `first_generation` on whose file reads or is not there yet.
    """
    from jobs.indexing.pipeline import train_once
    from jobs.indexing.queries import store_real_queries

    setup = source.setup(config, index, identity, None)
    if config.queries is not None and load_held_out(index, name, config.recall.k) is None:
        store_real_queries(place, config.queries, config.recall.queries, source, setup, name)
    has_queries = load_held_out(index, name, config.recall.k) is not None
    cache = Cache.at(config.compute.cache_dir)
    generation = before.generation if before else usable_generation(index, identity.spec, first_generation, cache)
    if has_trained(index, generation) and has_queries:
        trained = before or stored_trained(index, generation)
    else:
        drawn = None if has_queries else name
        made = train_once(place, config, identity, setup, source.records, generation, drawn)
        trained = before or made
    return trained, source.setup(config, index, identity, load_held_out(index, name, config.recall.k))


def plan_changes(
    place: Place, config: Config, source: Embeddings, setup: BuildSetup, present: Present, rows_per_shard: int
) -> UpdatePlan:
    """What the new embeddings change; the rows of changed files are compared, nothing else is read.

    Where rows cannot be followed (a shard is damaged, or the snapshot that it was built from was vacuumed), the shards
    that are not as a fresh build would make them are built anew.
    """
    from jobs.indexing.pipeline import diff_shards

    previous = present.snapshot
    if previous is None:
        return plan_update(None, source.records, {}, rows_per_shard, config.update)
    gone = source.gone_since(previous)
    if gone is None or present.broken or not can_patch(previous):
        anew = config.update.model_copy(update={"mode": "rebuild"})
        return plan_update(previous, source.records, {}, rows_per_shard, anew, present.broken)
    known = frozenset(previous.fragments)
    added = [record for record in source.records if record.key not in known]
    comparisons = plan_comparisons(previous, gone, added)
    diffs = diff_shards(place, setup, previous, comparisons) if comparisons else {}
    return plan_update(previous, source.records, diffs, rows_per_shard, config.update)


def build_changes(
    place: Place,
    config: Config,
    identity: IndexIdentity,
    setup: BuildSetup,
    trained: TrainedRecord | None,
    plan: UpdatePlan,
    previous: IndexSnapshot | None,
    log: IndexLog,
) -> list[ShardRecord]:
    """The shards that stay, with their dead rows marked, and the new ones."""
    from jobs.indexing.pipeline import build_list_shards, build_shards

    kept: Sequence[ShardRecord] = previous.shards if previous is not None else ()
    shards = [
        patch(setup.index, kept[n], plan.dead.get(n), plan.moved.get(n, {}))
        if n in plan.dead or n in plan.moved
        else kept[n]
        for n in plan.kept
    ]
    training = trained.sha256 if trained is not None else ""
    plans = [ShardPlan.of(group, training, identity.keep) for group in plan.groups]
    by_list = identity.sharding == "list" and bool(plans) and not plan.is_patch
    records: list[ShardRecord] = []
    build = build_list_shards if by_list else build_shards
    for built in build(place, config, identity.spec, setup, trained, plans):
        records.append(built.record)
        log.built(built.record, built.seconds, len(records), len(plans))
    order = {plan.key: (i, 0) for i, plan in enumerate(plans)}
    return [*shards, *sorted(records, key=lambda record: record.lists or order[record.plan_key])]


def publish_after(index: Location, snapshot: IndexSnapshot) -> IndexSnapshot:
    """Make the snapshot the newest, after whatever another run has published meanwhile.

    Raises StorageError where a file that it names has gone since it was built or checked; nothing is published then.
    """
    while True:
        number = next_index_number(index)  # first: what a vacuum takes away, it fences off from this number on
        if number > snapshot.number:
            latest = read_index(index) if index_numbers(index) else None  # there may be nothing but fences
            if latest is not None and latest.number >= snapshot.number and _is_as_new(latest, snapshot):
                logger.info("snapshot %d was published by another run meanwhile and is as new", latest.number)
                return latest
            snapshot = snapshot.model_copy(update={"number": number})
        with using(index, "index"):
            _check_files(index, snapshot)
            if publish_index(index, snapshot):
                return snapshot


def _is_as_new(latest: IndexSnapshot, snapshot: IndexSnapshot) -> bool:
    return latest.embeddings_snapshot > snapshot.embeddings_snapshot or latest.fragments == snapshot.fragments


def _check_files(index: Location, snapshot: IndexSnapshot) -> None:
    faults = find_faults(index, snapshot, "sizes")
    if faults:
        raise StorageError(
            errno.ESTALE, f"run index again: {faults[0].path} {faults[0].message} since this run checked or wrote it"
        )
