"""embed: a corpus in, vectors with their ids out, every row accounted for.

    python -m jobs embed configs/embed/quickstart.yaml

Run it again after a crash, a change of the corpus, or for no reason: only what is missing is embedded, and a finished
job opens no source data, loads no model and starts no Ray.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from jobs.embedding.backlog import Backlog, find_backlog
from jobs.embedding.config import EmbedConfig as Config
from jobs.embedding.dropping import check_files_gone, check_rows_lost
from jobs.embedding.identity import RECIPES, cut_as, identify
from jobs.embedding.outcome import RunLog, check_gates, store_config
from jobs.embedding.watching import CHECKING_IDS, LISTING, RunProgress
from operators.corpus.listing import list_source
from operators.corpus.units import choose_pack_below
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.storage import Location, exists, locate
from operators.storage.lease import using
from operators.store.dataset import Identity, claim_identity
from operators.store.fragments import FragmentRecord
from operators.store.snapshots import FilesGone, publish

if TYPE_CHECKING:
    from jobs.embedding.in_process import InProcess
    from jobs.embedding.on_ray import OnRay

logger = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Embed what is missing, publish a snapshot, write the report; returns the exit code."""
    spec = embedder_spec(config.model, config.embedder, RECIPES)
    dataset = locate(config.output.path, config.output.storage_options)
    log = RunLog(config, spec, dataset)
    with log.progress() as progress:
        progress.phase(LISTING)
        pack_below_bytes, files = choose_pack_below(list_source(config.source), config.source)
        identity, files = identify(config, spec, dataset, pack_below_bytes, files)
        settled = cut_as(config, identity)
        with _at_work(dataset):
            todo = find_backlog(dataset, settled, files, identity)
            log.settle(settled, todo)
            check_files_gone(config, todo)
            backlog = _embed_pending(settled, spec, dataset, identity, todo, progress) if todo.pending else todo
    if backlog is None:
        return run(config)
    if backlog.snapshot.number and backlog.snapshot.keys == {record.key for record in backlog.complete}:
        log.nothing_to_do()
        return check_gates(config, backlog.complete)
    check_rows_lost(config, backlog.snapshot.records, backlog.complete)
    try:
        snapshot = publish(dataset, backlog.complete)
    except FilesGone as gone:  # this run was held up until a vacuum took it for dead
        logger.warning("looking again at what is missing: %s", gone)
        return run(config)
    log.finish(snapshot)
    return check_gates(config, snapshot.records)


def _embed_pending(
    config: Config, spec: EmbedderSpec, dataset: Location, identity: Identity, backlog: Backlog, progress: RunProgress
) -> Backlog | None:
    """Embed the pending units on Ray, or here where that is done sooner; returns the backlog with everything whole.

    None where another run began the same output just now and cuts it otherwise.
    """
    with _place(config, spec, dataset, backlog, progress) as place:
        from jobs.embedding.workers import Work

        progress.phase(CHECKING_IDS)
        duplicates = place.duplicate_positions(identity, backlog)
        if identity.dtype == "int8" and identity.scale is None:
            identity = dataclasses.replace(identity, scale=place.calibrate_scale(identity.keep, backlog.pending))
        planned, identity = identity, claim_identity(dataset, identity)
        if identity.cut != planned.cut:
            return None
        store_config(config, dataset, identity)
        backlog = backlog.settled(duplicates)
        work = [Work.of(unit, backlog.parts(), duplicates.get(unit.digest, ())) for unit in backlog.pending]
        done: list[FragmentRecord] = []
        with using(dataset, "embed"):
            for record, counts in place.embed(identity, backlog, work, progress) if work else ():
                done.append(record)
                progress.count(record, counts)
    backlog = backlog.with_records(done)
    assert not backlog.pending, f"the pipeline ended with {len(backlog.pending)} units unfinished: run again"
    return backlog


@contextmanager
def _at_work(dataset: Location) -> Iterator[None]:
    """Keep vacuums from what earlier runs have left, which may count as done.

    Where there is no dataset yet, nothing is written: the config may be refused still.
    """
    with ExitStack() as held:
        if exists(dataset / "dataset.json"):
            held.enter_context(using(dataset, "embed"))
        yield


@contextmanager
def _place(
    config: Config, spec: EmbedderSpec, dataset: Location, backlog: Backlog, progress: RunProgress
) -> Iterator[InProcess | OnRay]:
    # Imported here: a run with nothing to do needs neither Ray nor what the stages are made of.
    from jobs.embedding.in_process import forget, in_process, is_brief

    if is_brief(config, spec, dataset, backlog):
        with in_process(config, spec, dataset) as here:
            yield here
        return
    from jobs.embedding.on_ray import on_ray

    with on_ray(config, spec, dataset, progress) as cluster:
        yield cluster
    forget(dataset)
