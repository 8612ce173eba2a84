"""verify: prove from storage alone that every source row is embedded or rejected exactly once, with sound vectors.

    python -m jobs verify CONFIG.yaml [verify.sample_rows=64]
    python -m jobs verify INDEX

Of an index it proves that every shard opens, that every file is the one that was written, and that its live rows are
those of the embeddings. Else it takes the config of `embed`: it reads the source and the dataset again, embeds a sample
of documents again and compares.
Exit code 3 and the names of fragments or files where something does not hold.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from cluster.session import connect
from jobs.embedding.backlog import Backlog, find_backlog
from jobs.embedding.config import EmbedConfig as Config
from jobs.embedding.identity import RECIPES, cut_as, identify
from jobs.embedding.small import needs_no_ray
from jobs.indexing.checking import IndexCheck, check_index_files
from operators.corpus.listing import list_source
from operators.embedder.recipe.spec import embedder_spec
from operators.errors import InputError
from operators.storage import Location, locate
from operators.store.dataset import Identity, read_identity
from operators.store.snapshots import snapshot_numbers, whole_units
from operators.store.vacuum import orphans
from operators.store.verification import Problem

if TYPE_CHECKING:
    from jobs.embedding.checking import Checks

logger = logging.getLogger(__name__)
_SHOWN = 50
SUBJECT = "index"


def config_of(values: Mapping[str, Any]) -> type[BaseModel]:
    """Which of the two these keys are of."""
    return IndexCheck if "index" in values else Config


def run(config: Config | IndexCheck) -> int:
    """Check everything; prints what was proven or what is wrong; returns the exit code."""
    if isinstance(config, IndexCheck):
        return check_index_files(config)
    spec = embedder_spec(config.model, config.embedder, RECIPES)
    dataset = locate(config.output.path, config.output.storage_options)
    present = read_identity(dataset)
    if present is None:
        raise InputError(f"run embed first: there is no embeddings dataset at {dataset.url}")
    identity, files = identify(config, spec, dataset, present.pack_below_bytes, list_source(config.source))
    config = cut_as(config, identity)
    backlog = find_backlog(dataset, config, files, identity)
    if not backlog.snapshot.number:
        raise InputError(f"run embed first: {dataset.url} has no snapshot yet")
    problems = [*_listing_problems(backlog), *_visible_orphans(dataset)]
    snapshot = backlog.snapshot
    with _checks(config, dataset, backlog) as checks:
        problems += checks.verify_units(config, dataset, identity, snapshot)
        if config.source.checks_ids:
            problems += checks.duplicate_ids(config, dataset, identity, snapshot)
        sampled, cosine = checks.embed_again(config, spec, dataset, identity, snapshot)
    if cosine < config.verify.min_cosine:
        problems.append(Problem("(sample)", f"embedded again, {sampled} documents agree only to {cosine:.6f}"))
    return _report(backlog, identity, problems, sampled, cosine)


@contextmanager
def _checks(config: Config, dataset: Location, backlog: Backlog) -> Iterator[Checks]:
    """The checks: in this process where all is small, else on Ray."""
    if needs_no_ray(config, dataset, [record.fragment.unit for record in backlog.snapshot.records]):
        from jobs.embedding import checking

        yield checking
        return
    with connect(local_cpus=config.compute.local_cpus):
        from jobs.embedding import checking_on_ray

        yield checking_on_ray


def _listing_problems(backlog: Backlog) -> Iterator[Problem]:
    """Units of the source that the snapshot lacks, and units of the snapshot that the source no longer has."""
    whole = whole_units(backlog.snapshot.records)
    listed = {unit.digest: unit for unit in backlog.units}
    for digest, unit in listed.items():
        if digest not in whole:
            yield Problem(digest, f"the snapshot has not all of {unit.extents[0].file.path}: run embed")
    for record in backlog.snapshot.records:
        unit = record.fragment.unit
        if unit.digest not in listed and record.fragment.part == 0:
            path = unit.extents[0].file.path
            yield Problem(record.key, f"{path} is gone or has changed since it was embedded: run embed")


def _visible_orphans(dataset: Location) -> Iterator[Problem]:
    for _, info in orphans(dataset, snapshot_numbers(dataset), older_than=float("inf")):
        yield Problem(info.url.rsplit("/", 1)[-1], "no snapshot names this file: run embed again to the end, or vacuum")


def _report(backlog: Backlog, identity: Identity, problems: list[Problem], sampled: int, cosine: float) -> int:
    records = backlog.snapshot.records
    rows, rejected = sum(r.rows for r in records), sum(r.rejected for r in records)
    if problems:
        for problem in problems[:_SHOWN]:
            print(f"{problem.key}: {problem.message}")
        if len(problems) > _SHOWN:
            print(f"... and {len(problems) - _SHOWN} more")
        print(f"snapshot {backlog.snapshot.number}: {len(problems)} problems in {len(records)} fragments")
        return 3
    print(
        f"snapshot {backlog.snapshot.number} holds: {rows:,} source rows = {rows - rejected:,} embedded + {rejected:,} "
        f"rejected, in {len(records):,} fragments; {sum(r.chunks for r in records):,} vectors "
        f"({_form(identity)}) are sound"
    )
    if sampled:
        print(f"{sampled} documents embedded again agree (least cosine {cosine:.6f})")
    return 0


def _form(identity: Identity) -> str:
    dense = [f"{identity.dim} x {identity.dtype}"] if identity.dim else []
    return " and ".join([*dense, *([f"sparse over {identity.sparse_dim}"] if identity.sparse_dim else [])])
