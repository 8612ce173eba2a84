"""The parts of `verify` that run on Ray: units checked in parallel, duplicate ids, a sample embedded again."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from jobs.embedding.capacity import EMBED_CPU_SHARE
from jobs.embedding.config import EmbedConfig
from jobs.embedding.duplicates import duplicated_in_store
from operators.corpus.reading import read_fragments
from operators.embedder.factory import load_chunk_embedder, load_embedder, load_image_reader
from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.pipeline.stages import inputs_of, tokenize_fragment
from operators.storage import Location
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord, data_file, read_table, record_from_dict
from operators.store.snapshots import Snapshot, whole_units
from operators.store.verification import Problem, verify_unit, worst_cosine
from operators.work.fragment import REJECTED_SCHEMA, FragmentBatch
from operators.work.guard import AttemptLedger

_SAMPLED_FRAGMENTS = 8


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
    """Document ids that stand in the dataset more than once, unless the config keeps them all."""
    if config.source.duplicates == "keep_all" or config.source.id is None:
        return
    for doc_id, key in duplicated_in_store(dataset, snapshot.records, config.source, identity.keep):
        yield Problem(key, f"the document id {doc_id!r} is in the dataset more than once")


def embed_again(
    config: EmbedConfig, spec: EmbedderSpec, dataset: Location, identity: Identity, snapshot: Snapshot
) -> tuple[int, float]:
    """Embed a random sample of documents again on one worker; returns how many, and the least cosine to the stored."""
    candidates = [record for record in snapshot.records if record.chunks]
    if not config.verify.sample_rows or not candidates:
        return 0, 1.0
    chosen = random.Random(snapshot.number).sample(candidates, min(_SAMPLED_FRAGMENTS, len(candidates)))
    compute = config.compute
    task = ray.remote(num_cpus=EMBED_CPU_SHARE * compute.cpus_per_worker, num_gpus=compute.gpus_per_worker or None)(
        _embed_again
    )
    result: tuple[int, float] = ray.get(task.remote(config, spec, dataset, identity, chosen))
    return result


def _embed_again(
    config: EmbedConfig, spec: EmbedderSpec, dataset: Location, identity: Identity, records: Sequence[FragmentRecord]
) -> tuple[int, float]:
    tokenizer = Tokenizer(spec)
    images = load_image_reader(spec, config.source.image, config.source.storage_options)
    load = load_chunk_embedder if config.chunking.late else load_embedder
    embed = load(spec, device=config.embedder.device, threads=config.compute.cpus_per_worker)
    documents, least = 0, 1.0
    for record in records:
        stored = read_table(data_file(dataset, record.key))
        batch = _batch_of(config, identity, record)
        wanted = -(-config.verify.sample_rows // len(records))
        embedded = stored.filter(pc.equal(stored["chunk"], 0)).select(["source_path", "source_row"]).to_pylist()
        sample = random.Random(record.key).sample(embedded, min(wanted, len(embedded)))
        rows = batch.table.filter(_is_one_of(batch.table, sample))
        again = dataclasses.replace(batch, table=rows, rejected=REJECTED_SCHEMA.empty_table())
        tokens = tokenize_fragment(again, config.chunking, tokenizer, AttemptLedger(), images).table
        before = stored.filter(_is_one_of(stored, sample))
        if before.num_rows != tokens.num_rows:
            return documents, -1.0
        vectors = embed(inputs_of(tokens))
        least = min(least, worst_cosine(before, vectors, identity))
        documents += len(sample)
    return documents, least


def _batch_of(config: EmbedConfig, identity: Identity, record: FragmentRecord) -> FragmentBatch:
    parts_before = range(record.fragment.part)
    return next(read_fragments(record.fragment.unit, config.source, identity.keep, parts_before))


def _is_one_of(table: pa.Table, sample: list[dict[str, object]]) -> pa.Array:
    wanted = {(row["source_path"], row["source_row"]) for row in sample}
    pairs = zip(table["source_path"].to_pylist(), table["source_row"].to_pylist(), strict=True)
    return pa.array([pair in wanted for pair in pairs], pa.bool_())
