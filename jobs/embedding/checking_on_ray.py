"""What `verify` does on Ray: units checked in parallel, duplicate ids, a sample embedded again by a worker."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator

import pyarrow as pa
import ray
import ray.data

from cluster.session import compute_runtime_env
from jobs.embedding.capacity import EMBED_CPU_SHARE
from jobs.embedding.checking import embed_fragments_again, repeated, sampled_fragments
from jobs.embedding.config import EmbedConfig
from jobs.embedding.duplicates import duplicated_in_store
from operators.embedder.recipe.spec import EmbedderSpec
from operators.storage import Location
from operators.store.dataset import Identity
from operators.store.fragments import record_from_dict
from operators.store.snapshots import Snapshot, whole_units
from operators.store.verification import Problem, verify_unit


def verify_units(config: EmbedConfig, dataset: Location, identity: Identity, snapshot: Snapshot) -> list[Problem]:
    """Check every unit of the snapshot against the source, in parallel."""
    units = whole_units(snapshot.records).values()
    if not units:
        return []
    rows = [pa.table({"records": [json.dumps([dataclasses.asdict(r) for r in records])]}) for records in units]
    check = functools.partial(_verify_rows, dataset=dataset, identity=identity, config=config)
    found = ray.data.from_arrow(rows).map_batches(check, batch_size=1, batch_format="pyarrow", num_cpus=0.5)
    return [Problem(row["key"], row["message"]) for row in found.iter_rows()]


def _verify_rows(block: pa.Table, dataset: Location, identity: Identity, config: EmbedConfig) -> pa.Table:
    problems: list[Problem] = []
    for row in block.to_pylist():
        records = [record_from_dict(record) for record in json.loads(row["records"])]
        problems += verify_unit(dataset, identity, config.source, records)
    schema = pa.schema([("key", pa.string()), ("message", pa.string())])
    return pa.Table.from_pylist([dataclasses.asdict(problem) for problem in problems], schema=schema)


def duplicate_ids(config: EmbedConfig, dataset: Location, identity: Identity, snapshot: Snapshot) -> Iterator[Problem]:
    """Document ids that stand in the dataset more than once."""
    for doc_id, key in duplicated_in_store(dataset, snapshot.records, config.source, identity.keep):
        yield repeated(doc_id, key)


def embed_again(
    config: EmbedConfig, spec: EmbedderSpec, dataset: Location, identity: Identity, snapshot: Snapshot
) -> tuple[int, float]:
    """Embed a random sample of documents again on one worker; returns how many, and the least cosine to the stored."""
    chosen, compute = sampled_fragments(config, snapshot), config.compute
    if not chosen:
        return 0, 1.0
    task = ray.remote(
        num_cpus=EMBED_CPU_SHARE * compute.cpus_per_worker,
        num_gpus=compute.gpus_per_worker or None,
        runtime_env=compute_runtime_env(),
    )(embed_fragments_again)
    result: tuple[int, float] = ray.get(task.remote(config, spec, dataset, identity, chosen, compute.cpus_per_worker))
    return result
