"""What an index is made of, and its snapshots: immutable, numbered from 1, published last.

IDX/index.json               what the index is: spec, metric, which model's vectors; created once
IDX/trained.faiss            the trained, empty index that all shards share (trained-2.faiss after a retraining)
IDX/shards/<key>.faiss       the codes of a shard; row i of its id map is vector i
IDX/shards/<key>.sparse.arrow   its sparse vectors, an inverted file (operators.index.postings)
IDX/shards/<key>.ids.parquet its id map: doc_id, chunk, where they come from, kept columns; written last
IDX/shards/<key>.dead-*.parquet  rows of a shard that are deleted
IDX/shards/<key>.moved-*.parquet rows that stand in other fragments of the embeddings now
IDX/recall/                  held-out queries, and their exact neighbours in each shard
IDX/snapshots/00000001.json  which shards make up the index, and how well it finds
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict

from operators.errors import InputError
from operators.index.spec import IndexSpec, Metric
from operators.index.vectors import VectorSpace
from operators.storage import Location, create_exclusive, exists, read_bytes, write_whole
from operators.storage.numbered import Numbered

logger = logging.getLogger(__name__)

LAYOUT_VERSION = 1
SPARSE_FILE = "sparse.arrow"
_MUST_AGREE = (
    "fingerprint",
    "embeddings",
    "metric",
    "dim",
    "sparse_dim",
    "dtype",
    "requested",
    "sharding",
    "keep",
    "seed",
)


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that a snapshot names; `bytes` is None where its size is not kept."""

    path: str  # below the index
    bytes: int | None
    sha256: str


class Record(BaseModel):
    """Base of what is stored as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IndexIdentity(Record):
    """What all snapshots of an index have in common; the file index.json."""

    requested: str  # spec as the config has it; "auto" or a factory string
    factory: str
    why: str
    metric: Metric
    sharding: Literal["document", "list"]
    dim: int  # 0: sparse vectors alone, and nothing is trained
    dtype: str
    scale: float | None
    fingerprint: str  # of the embeddings
    model: str
    embeddings: str  # URL of the embeddings dataset
    keep: tuple[str, ...]  # columns beside the ids, for filters and results
    seed: int
    sparse_dim: int = 0  # ids that a sparse vector can have; 0: the index has none
    layout: int = LAYOUT_VERSION

    @property
    def spec(self) -> IndexSpec:
        """The faiss index that is built."""
        return IndexSpec(self.factory, self.metric, self.dim, self.why)

    @property
    def space(self) -> VectorSpace:
        """How vectors are prepared for it."""
        return VectorSpace(self.dim, self.dtype, self.scale, self.metric)


class FragmentRows(Record):
    """Rows of one fragment of the embeddings that a shard holds, consecutive in it."""

    key: str
    rows: int


class Deletions(Record):
    """Rows of a shard that are deleted: a Parquet file with their ordinals, ascending."""

    path: str
    rows: int
    sha256: str


class Moves(Record):
    """Rows of a shard that stand in other fragments now than their id map says: ordinal, fragment, row."""

    path: str
    rows: int
    sha256: str


class SparseFile(Record):
    """The inverted file of a shard's sparse vectors."""

    bytes: int
    sha256: str
    entries: int


class ShardRecord(Record):
    """One shard: a faiss file, an inverted file, or both, and its id map."""

    key: str
    rows: int
    bytes: int  # of the faiss file; 0 where the index has sparse vectors alone
    sha256: str
    ids_bytes: int = 0  # of the id map; these two are not known yet in the record that the id map itself carries
    ids_sha256: str = ""
    trained_sha256: str
    sparse: SparseFile | None = None
    fragments: tuple[FragmentRows, ...]  # in the order of the ordinals; empty for shards by inverted list
    lists: tuple[int, int] | None = None  # first inverted list and the one after the last, for shards by list
    distance: float | None = None  # mean distance of its vectors to their centroid (drift)
    cpu_seconds: float = 0.0  # that building took
    deletions: Deletions | None = None
    moves: Moves | None = None
    is_patch: bool = False  # it holds some rows of its fragments, not all

    @property
    def plan_key(self) -> str:
        """The key of the plan that it was built by; what follows it names the content."""
        return self.key.partition("-")[0]

    @property
    def files(self) -> tuple[NamedFile, ...]:
        """Its files with their hashes, in the order in which they are written, without patches."""
        codes = [NamedFile(_shard_path(self.key, "faiss"), self.bytes, self.sha256)] if self.bytes else []
        sparse = self.sparse
        inverted = [NamedFile(_shard_path(self.key, SPARSE_FILE), sparse.bytes, sparse.sha256)] if sparse else []
        return (*codes, *inverted, NamedFile(_shard_path(self.key, "ids.parquet"), self.ids_bytes, self.ids_sha256))

    @property
    def patches(self) -> tuple[NamedFile, ...]:
        """The files that say what has become of its rows since it was built."""
        return tuple(NamedFile(p.path, None, p.sha256) for p in (self.deletions, self.moves) if p is not None)

    @property
    def all_bytes(self) -> int:
        """Of the faiss and the inverted file."""
        return self.bytes + (self.sparse.bytes if self.sparse is not None else 0)

    @property
    def live_rows(self) -> int:
        """Rows that are not deleted."""
        return self.rows - (self.deletions.rows if self.deletions else 0)


class TrainedRecord(Record):
    """The trained index that the shards of a snapshot share."""

    path: str
    sha256: str
    bytes: int
    generation: int
    distance: float | None = None  # mean distance of vectors to their centroid when it was new


class Settings(Record):
    """How hard to search; what does not apply to an index kind is ignored."""

    nprobe: int = 1  # inverted lists that a query looks into
    ef: int = 64  # candidates that a graph search keeps (HNSW)
    k_factor: int = 1  # candidates per result that the second, finer store ranks


class CurvePoint(Record):
    """One setting, measured on the held-out queries."""

    settings: Settings
    recall: float  # of the exact k nearest
    lower: float  # lower bound of its confidence interval
    cpu_ms: float  # per query, all shards together
    scanned: float  # vectors compared per query


class Recall(Record):
    """How well the index finds, measured against exact search."""

    k: int
    target: float
    queries: int
    source: str  # which queries
    chosen: CurvePoint
    curve: tuple[CurvePoint, ...]

    @property
    def is_met(self) -> bool:
        """Whether the lower bound reaches the target."""
        return self.chosen.lower >= self.target


class IndexSnapshot(Record):
    """A numbered state of the index."""

    number: int
    created: str
    identity: IndexIdentity
    trained: TrainedRecord | None  # None: sparse vectors alone
    embeddings_snapshot: int
    fragments: tuple[str, ...]  # of the embeddings snapshot, all of which the shards hold together
    shards: tuple[ShardRecord, ...]
    replaced: dict[str, tuple[str, ...]] = {}  # fragment that is gone -> those that hold its surviving rows now
    tracks_rows: bool = False  # the shards' `moves` say which rows these are; versions that did not know kept no such
    recall: Recall | None = None
    queries: str = ""  # how the held-out queries were chosen

    @property
    def num_vectors(self) -> int:
        """Vectors that a search can return."""
        return sum(shard.live_rows for shard in self.shards)


def read_index_identity(index: Location) -> IndexIdentity | None:
    """The identity of the index at this place, or None where there is none; InputError for a damaged file."""
    location = index / "index.json"
    if not exists(location):
        return None
    try:
        identity = IndexIdentity.model_validate_json(read_bytes(location))
    except pydantic.ValidationError as error:
        raise InputError(f"choose another output.path: {location} is no index of this version ({error})") from None
    if identity.layout != LAYOUT_VERSION:
        raise InputError(
            f"choose another output.path: {index.url} has layout {identity.layout}; "
            f"this version writes layout {LAYOUT_VERSION}"
        )
    return identity


def claim_index(index: Location, wanted: IndexIdentity) -> IndexIdentity:
    """Create the index's identity, or take the one that is there if it agrees (see `check_index`)."""
    if create_exclusive(index / "index.json", wanted.model_dump_json(indent=1).encode()):
        return wanted
    present = read_index_identity(index)
    assert present is not None, "create_exclusive lost, so the file is there"
    check_index(index, present, wanted)
    return present


def restore_identity(index: Location, identity: IndexIdentity) -> None:
    """Write index.json again, of which every snapshot has a copy, where it is lost or does not read."""
    try:
        is_there = read_index_identity(index) is not None
    except InputError:
        is_there = _is_of_another_layout(index)
    if not is_there:
        logger.warning("%s is lost or damaged; it is written again", index / "index.json")
        write_whole(index / "index.json", identity.model_dump_json(indent=1).encode())


def _is_of_another_layout(index: Location) -> bool:
    try:
        return bool(json.loads(read_bytes(index / "index.json"))["layout"] != LAYOUT_VERSION)
    except (ValueError, KeyError, TypeError):
        return False


def check_index(index: Location, present: IndexIdentity, wanted: IndexIdentity) -> None:
    """Raise InputError where an index was made for other vectors or otherwise than is wanted now."""
    for name in _MUST_AGREE:
        here, now = getattr(present, name), getattr(wanted, name)
        if here != now:
            raise InputError(
                f"choose another output.path: {index.url} is an index with {name} {here} (vectors of {present.model}), "
                f"this run has {now}"
            )


def index_files(index: Location) -> Numbered:
    """The files of the snapshots."""
    return Numbered(index / "snapshots", ".json")


def index_numbers(index: Location) -> list[int]:
    """The numbers of the snapshots that exist, ascending."""
    return index_files(index).look().numbers


def next_index_number(index: Location) -> int:
    """The number that the next snapshot gets."""
    return index_files(index).look().last + 1


def read_index(index: Location, number: int | None = None) -> IndexSnapshot:
    """A snapshot by its number, or the newest. Raises InputError where there is none or it is damaged."""
    numbers = index_numbers(index)
    if not numbers:
        raise InputError(f"run index first: there is no finished index at {index.url}")
    if number is not None and number not in numbers:
        raise InputError(f"choose one of the snapshots {numbers}: {index.url} has no snapshot {number}")
    location = index_files(index).file(number or numbers[-1])
    content = read_bytes(location)
    if not content:
        raise InputError(f"choose another snapshot: {location.name} was vacuumed")
    try:
        return IndexSnapshot.model_validate_json(content)
    except pydantic.ValidationError as error:
        raise InputError(f"restore {location} from a backup or remove it: it does not read ({error})") from None


def publish_index(index: Location, snapshot: IndexSnapshot) -> bool:
    """Make a snapshot the newest; False where another run has published one with its number meanwhile."""
    return index_files(index).create(snapshot.number, snapshot.model_dump_json(indent=1).encode())


def trained_file(index: Location, generation: int) -> Location:
    """Where the trained index lies."""
    return index / ("trained.faiss" if generation == 1 else f"trained-{generation}.faiss")


def shard_file(index: Location, key: str, ending: str = "faiss") -> Location:
    """A file of a shard."""
    return index / _shard_path(key, ending)


def _shard_path(key: str, ending: str) -> str:
    return f"shards/{key}.{ending}"


def from_metadata(payload: bytes) -> ShardRecord:
    """The record that a shard's id map carries."""
    return ShardRecord.model_validate_json(payload)


def to_metadata(record: ShardRecord) -> dict[bytes, bytes]:
    """What `from_metadata` reads, as Parquet metadata."""
    return {b"embedfleet.shard": record.model_dump_json().encode()}


def record_of(metadata: dict[bytes, Any]) -> ShardRecord | None:
    """The shard's record in Parquet metadata, or None where it is no shard's."""
    payload = metadata.get(b"embedfleet.shard")
    return None if payload is None else from_metadata(payload)
