"""What `verify` does in this process with a small dataset: units checked, duplicate ids, a sample embedded again."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from cluster.environment import expected_cpus
from jobs.embedding.config import EmbedConfig
from jobs.embedding.duplicates import duplicated_in_small_store
from operators.corpus.reading import read_fragments
from operators.embedder.factory import load_chunk_embedder, load_embedder, load_image_reader
from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.pipeline.stages import inputs_of, tokenize_fragment
from operators.storage import Location
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord, data_file, read_table
from operators.store.snapshots import Snapshot, whole_units
from operators.store.verification import Problem, verify_unit, worst_cosine
from operators.work.fragment import REJECTED_SCHEMA, FragmentBatch
from operators.work.guard import AttemptLedger

_SAMPLED_FRAGMENTS = 8


class Checks(Protocol):
    """What this module does, and jobs.embedding.checking_on_ray on Ray."""

    def verify_units(
        self, config: EmbedConfig, dataset: Location, identity: Identity, snapshot: Snapshot, /
    ) -> list[Problem]:
        """Check every unit of the snapshot against the source."""

    def duplicate_ids(
        self, config: EmbedConfig, dataset: Location, identity: Identity, snapshot: Snapshot, /
    ) -> Iterator[Problem]:
        """Document ids that stand in the dataset more than once."""

    def embed_again(
        self, config: EmbedConfig, spec: EmbedderSpec, dataset: Location, identity: Identity, snapshot: Snapshot, /
    ) -> tuple[int, float]:
        """Embed a random sample of documents again; returns how many, and the least cosine to the stored."""


def verify_units(config: EmbedConfig, dataset: Location, identity: Identity, snapshot: Snapshot) -> list[Problem]:
    """Check every unit of the snapshot against the source."""
    units = whole_units(snapshot.records).values()
    return [problem for records in units for problem in verify_unit(dataset, identity, config.source, records)]


def duplicate_ids(config: EmbedConfig, dataset: Location, identity: Identity, snapshot: Snapshot) -> Iterator[Problem]:
    """Document ids that stand in the dataset more than once."""
    for doc_id, key in duplicated_in_small_store(dataset, snapshot.records, config.source, identity.keep):
        yield repeated(doc_id, key)


def repeated(doc_id: str, key: str) -> Problem:
    """An id that stands in the dataset once more, in the fragment of this key."""
    return Problem(key, f"the document id {doc_id!r} is in the dataset more than once")


def embed_again(
    config: EmbedConfig, spec: EmbedderSpec, dataset: Location, identity: Identity, snapshot: Snapshot
) -> tuple[int, float]:
    """Embed a random sample of documents again; returns how many, and the least cosine to the stored.

    All CPUs share the work: nothing else runs.
    """
    chosen = sampled_fragments(config, snapshot)
    if not chosen:
        return 0, 1.0
    threads = expected_cpus(config.compute.local_cpus) or config.compute.cpus_per_worker
    return embed_fragments_again(config, spec, dataset, identity, chosen, threads)


def sampled_fragments(config: EmbedConfig, snapshot: Snapshot) -> list[FragmentRecord]:
    """The fragments that the sample comes from; none where it is empty."""
    candidates = [record for record in snapshot.records if record.chunks]
    if not config.verify.sample_rows:
        return []
    return random.Random(snapshot.number).sample(candidates, min(_SAMPLED_FRAGMENTS, len(candidates)))


def embed_fragments_again(
    config: EmbedConfig,
    spec: EmbedderSpec,
    dataset: Location,
    identity: Identity,
    records: Sequence[FragmentRecord],
    threads: int,
) -> tuple[int, float]:
    """Embed a sample of these fragments' documents again; how many, and the least cosine to the stored vectors."""
    tokenizer = Tokenizer(spec)
    images = load_image_reader(spec, config.source)
    load = load_chunk_embedder if config.chunking.late else load_embedder
    embed = load(spec, device=config.embedder.device, threads=threads)
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
