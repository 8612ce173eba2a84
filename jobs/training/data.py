"""The first step of `train`: every set prepared on storage, by Ray Data where that is not done yet.

    listing -> fingerprint -> manifest there?  yes: nothing is read
                                               no:  units -> read + clean + write (tasks) -> parts -> manifest

A task streams one unit (a file, or a part of one) in bounded memory and writes what it kept; the driver holds a line
for each part. Tasks that die are tried again and write the same files; a set without a manifest does not exist.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from cluster.session import connect
from jobs.training.config import TrainConfig
from operators.corpus.listing import list_source
from operators.corpus.units import PACK_BELOW_BYTES, plan_units
from operators.errors import InputError
from operators.storage import Location, locate
from operators.storage.cache import Cache
from operators.training.config.sets import TrainingSet, typed_columns
from operators.training.data.batch_plan import BatchPlan, PlannedSet
from operators.training.data.counts import RowCounts
from operators.training.data.prepared import (
    Manifest,
    Part,
    PreparedRows,
    Split,
    prepare_unit,
    read_manifest,
    write_manifest,
)
from operators.work.fragment import SourceFile, unit_from_dict
from operators.work.guard import PATIENCE, Ledger

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """A set of the config, ready on storage."""

    config: TrainingSet
    folder: Location
    manifest: Manifest

    def rows(self, split: Split, cache: Cache) -> PreparedRows:
        """The rows of a split, on the machine that asks."""
        return PreparedRows(self.folder, self.manifest, split, cache)


@dataclass(frozen=True, slots=True)
class MissingSet:
    """A set that is to be prepared."""

    config: TrainingSet
    folder: Location
    files: tuple[SourceFile, ...]


def prepare_sets(config: TrainConfig) -> tuple[PreparedSet, ...]:
    """All sets, prepared; Ray is used, and sources are opened, for those only that are not there yet."""
    found = [_find(training_set, config) for training_set in config.all_sets]
    missing = {item.folder.url: item for item in found if isinstance(item, MissingSet)}
    if missing:
        with connect(local_cpus=config.compute.local_cpus):
            manifests = _prepare(list(missing.values()), config.seed)
        found = [
            PreparedSet(item.config, item.folder, manifests[item.folder.url]) if isinstance(item, MissingSet) else item
            for item in found
        ]
    return tuple(item for item in found if isinstance(item, PreparedSet))


def batch_plan(config: TrainConfig, sets: Sequence[PreparedSet], size: int | None = None) -> BatchPlan:
    """The plan of the batches of some sets, the same in every process that makes it; `size` null: the run's."""
    cache = Cache.at(config.prepared.cache_dir)
    planned = [
        PlannedSet(
            prepared.config.name,
            prepared.manifest.rows("train"),
            prepared.config.weight,
            prepared.rows("train", cache).hashes if prepared.config.has_in_batch_negatives else None,
        )
        for prepared in sets
    ]
    return BatchPlan(planned, size or config.batch.size, config.seed)


def _find(training_set: TrainingSet, config: TrainConfig) -> PreparedSet | MissingSet:
    files = tuple(list_source(training_set.source()))
    prepared = config.prepared
    if prepared.path is None:
        home = locate(config.output.path, config.output.storage_options) / "sets"
    else:
        home = locate(prepared.path, prepared.storage_options)
    folder = home / training_set.fingerprint(files, config.seed)
    manifest = read_manifest(folder)
    if manifest is None:
        return MissingSet(training_set, folder, files)
    logger.info("set %s is prepared already: %s", training_set.name, manifest.counts)
    return PreparedSet(training_set, folder, manifest)


def _prepare(missing: Sequence[MissingSet], seed: int) -> dict[str, Manifest]:
    """Prepare sets together, so that small ones share the cluster; their manifests by folder."""
    import ray.data

    from jobs.embedding.pipeline import configure_ray_data
    from jobs.embedding.remote_ledger import RemoteLedger

    types = [typed_columns(item.files, item.config) for item in missing]
    work = [
        pa.table({"set": [number], "place": [place], "unit": [json.dumps(asdict(unit))]})
        for number, item in enumerate(missing)
        for place, unit in enumerate(plan_units(item.files, item.config.source(), (), PACK_BELOW_BYTES, {}))
    ]
    configure_ray_data()
    task = functools.partial(prepare_units, missing=missing, types=types, seed=seed, ledger=RemoteLedger())
    written = ray.data.from_arrow(work).map_batches(task, batch_size=1, batch_format="pyarrow", num_cpus=1)
    lines: list[list[tuple[int, int, Part | None, RowCounts]]] = [[] for _ in missing]
    for row in written.iter_rows():
        part = Part.model_validate_json(row["part"]) if row["part"] else None
        lines[row["set"]].append((row["place"], row["number"], part, RowCounts.model_validate_json(row["counts"])))
    manifests = {}
    for item, found in zip(missing, lines, strict=True):
        found.sort(key=lambda line: line[:2])  # by place in the source: tasks end in any order
        parts = [part for _, _, part, _ in found if part is not None]
        counts = RowCounts.total(line[3] for line in found)
        manifests[item.folder.url] = write_manifest(item.folder, item.config, parts, counts)
        logger.info("set %s: %s", item.config.name, counts)
    return manifests


def prepare_units(
    block: pa.Table, missing: Sequence[MissingSet], types: Sequence[pa.Schema], seed: int, ledger: Ledger
) -> Iterator[pa.Table]:
    """Units in, a line for each of their parts out."""
    from jobs.embedding.workers import retried

    for row in block.to_pylist():
        item, unit = missing[row["set"]], unit_from_dict(json.loads(row["unit"]))
        key = f"{item.folder.name}:{unit.digest}"
        attempt = ledger.begin(key, 1)
        try:
            if attempt.deaths > PATIENCE:
                paths = ", ".join(extent.file.path for extent in unit.extents)
                raise InputError(f"look at {paths}: {attempt.deaths} processes died while they read it")
            parts = prepare_unit(unit, item.config, types[row["set"]], item.folder, seed)
            for number, (part, counts) in enumerate(parts):
                yield _line(row, number, part, counts)
        except OSError as error:
            raise retried(error) from error
        finally:
            ledger.end(key)


def _line(row: dict[str, Any], number: int, part: Part | None, counts: RowCounts) -> pa.Table:
    values = {"set": row["set"], "place": row["place"], "number": number}
    texts = {"part": part.model_dump_json() if part is not None else "", "counts": counts.model_dump_json()}
    return pa.table({name: [value] for name, value in {**values, **texts}.items()})
