"""What the index job starts from: the embeddings, and the identity that the index must have."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pyarrow as pa

from jobs.indexing.config import IndexConfig
from operators.corpus.listing import list_source
from operators.embedder.recipe.fingerprint import mapping_digest
from operators.errors import InputError
from operators.index.building import BuildSetup
from operators.index.snapshot import IndexIdentity, IndexSnapshot, check_index, read_index_identity
from operators.index.spec import IndexSpec, choose_metric, choose_spec, make_index
from operators.index.truth import HeldOut
from operators.storage import Location, exists, locate
from operators.storage.lease import using
from operators.store.dataset import Identity, read_identity
from operators.store.fragments import FragmentRecord
from operators.store.snapshots import Snapshot, latest_snapshot, read_snapshot, snapshot_files, snapshot_numbers

logger = logging.getLogger(__name__)

NO_DENSE = "none"  # in place of a faiss factory string


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A snapshot of an embeddings dataset."""

    dataset: Location
    identity: Identity
    snapshot: Snapshot

    @property
    def records(self) -> tuple[FragmentRecord, ...]:
        """Its fragments."""
        return self.snapshot.records

    @property
    def keys(self) -> tuple[str, ...]:
        """Their keys, in the order of the source."""
        return tuple(record.key for record in self.snapshot.records)

    @property
    def num_vectors(self) -> int:
        """Vectors of the snapshot."""
        return sum(record.chunks for record in self.snapshot.records)

    def is_held_by(self, index: IndexSnapshot) -> bool:
        """Whether an index was made of this snapshot and has as many vectors."""
        return index.fragments == self.keys and index.num_vectors == self.num_vectors

    def setup(
        self, config: IndexConfig, index: Location, identity: IndexIdentity, queries: HeldOut | None
    ) -> BuildSetup:
        """What the builders of an index are told."""
        keep = pa.schema([self.identity.keep.field(name) for name in identity.keep])
        compute = config.compute
        return BuildSetup(
            index,
            self.dataset,
            self.identity,
            identity.space,
            keep,
            queries,
            compute.local_dir,
            compute.cache_dir,
            identity.sparse_dim,
        )

    def gone_since(self, previous: IndexSnapshot) -> list[FragmentRecord] | None:
        """Fragments that an index was built from and that this snapshot no longer has; None where it cannot be told."""
        gone = set(previous.fragments) - set(self.keys)
        if not gone:
            return []
        if previous.embeddings_snapshot not in snapshot_numbers(self.dataset):
            logger.info(
                "snapshot %d of the embeddings, which the index was built from, was vacuumed: what has changed since "
                "cannot be told, so shards of fragments that are gone are built anew",
                previous.embeddings_snapshot,
            )
            return None
        old = read_snapshot(self.dataset, previous.embeddings_snapshot)
        return [record for record in old.records if record.key in gone]


def open_embeddings(config: IndexConfig) -> Embeddings:
    """The embeddings that a config names; InputError where there are none."""
    dataset = locate(config.embeddings, config.storage_options)
    identity = read_identity(dataset)
    if identity is None:
        raise InputError(f"run embed first, or check embeddings: there is no embeddings dataset at {dataset.url}")
    numbers = snapshot_numbers(dataset)
    if config.snapshot is not None and config.snapshot not in numbers:
        raise InputError(f"choose one of the snapshots {numbers}: {dataset.url} has no snapshot {config.snapshot}")
    snapshot = latest_snapshot(dataset) if config.snapshot is None else read_snapshot(dataset, config.snapshot)
    if not snapshot.number:
        raise InputError(f"run embed to its end first: {dataset.url} has no snapshot yet")
    source = Embeddings(dataset, identity, snapshot)
    if not source.num_vectors:
        raise InputError(f"embed something first: snapshot {snapshot.number} of {dataset.url} has no vectors")
    return source


@contextmanager
def at_work(source: Embeddings, index: Location) -> Iterator[None]:
    """Keep vacuums from what an index run reads and from what earlier runs have left for it.

    Where there is no index yet, nothing is written: the config may be refused still. Raises InputError where the
    embeddings' snapshot was vacuumed just now.
    """
    number = source.snapshot.number
    with ExitStack() as held:
        held.enter_context(using(source.dataset, "index", (number,), is_optional=True))
        if not snapshot_files(source.dataset).holds(number):
            raise InputError(f"run index again: snapshot {number} of {source.dataset.url} was vacuumed just now")
        if exists(index / "index.json"):
            held.enter_context(using(index, "index"))
        yield


def identify_index(config: IndexConfig, source: Embeddings, index: Location) -> IndexIdentity:
    """The identity of the output; one that exists keeps its own spec, so that `auto` is decided once.

    Raises InputError where the output belongs to other vectors or settings, or the spec cannot be.
    """
    dim, kept = source.identity.dim, tuple(source.identity.keep.names)
    sparse_dim = _sparse_dim(config, source)
    metric = choose_metric(config.metric, source.identity.dtype, source.identity.similarity) if dim else "ip"
    for name in config.keep or ():
        if name not in kept:
            raise InputError(
                f"keep: the embeddings have no column {name!r}; they have {', '.join(kept) or 'no kept columns'}"
            )
    present = read_index_identity(index)
    if not dim:
        spec = IndexSpec(NO_DENSE, metric, 0, "the embeddings have sparse vectors alone, which are searched exactly")
    elif config.spec != "auto":
        spec = IndexSpec(config.spec, metric, dim, "as the config says")
    elif present is not None:
        spec = IndexSpec(present.factory, metric, dim, present.why)
    else:
        spec = choose_spec(source.num_vectors, dim, metric, config.recall_target, config.bytes_per_vector)
    if dim:
        make_index(spec)
    wanted = IndexIdentity(
        requested=config.spec,
        factory=spec.factory,
        why=spec.why,
        metric=metric,
        sharding=config.shards.by,
        dim=dim,
        dtype=source.identity.dtype,
        scale=source.identity.scale,
        fingerprint=source.identity.fingerprint,
        model=source.identity.model,
        embeddings=source.dataset.url,
        keep=kept if config.keep is None else config.keep,
        seed=config.train.seed,
        sparse_dim=sparse_dim,
    )
    if present is not None:
        check_index(index, present, wanted)
    return present or wanted


def _sparse_dim(config: IndexConfig, source: Embeddings) -> int:
    """Ids of the sparse vectors that are to be indexed, 0 for none; InputError where the config cannot be met."""
    there, dim = source.identity.sparse_dim, source.identity.dim
    if config.sparse and not there:
        raise InputError(f"leave out sparse: the embeddings of {source.identity.model} have no sparse vectors")
    if dim:
        return 0 if config.sparse is False else there
    for key, value, default in (
        ("sparse", config.sparse is not False, True),
        ("spec", config.spec, "auto"),
        ("metric", config.metric, "auto"),
        ("shards.by", config.shards.by, "document"),
        ("queries", config.queries, None),
    ):
        if value != default:
            raise InputError(f"leave out {key}: the embeddings of {source.identity.model} have sparse vectors alone")
    return there


def queries_name(config: IndexConfig, source: Embeddings) -> str:
    """A name for how the held-out queries are chosen; the same name means the same queries."""
    facts: dict[str, object] = {"count": config.recall.queries, "seed": config.train.seed}
    if config.queries is not None:
        files = [(file.path, file.size, file.version) for file in list_source(config.queries.source)]
        if not files:
            raise InputError(f"check queries.path: there is no file at {config.queries.path}")
        columns = config.queries.model_dump(include={"id", "text", "vector"})
        facts = {"count": config.recall.queries, "files": files, "columns": columns}
    return mapping_digest({**facts, "fingerprint": source.identity.fingerprint})[:12]
