"""Runs, vacuums and readers of one output at once, on an object store that is simulated: a seed is a schedule.

What must hold after every change: a snapshot names no missing or other file. At the end: what a run was told is
committed is there, or was vacuumed as old; a run in peace goes through. A failing seed replays:
EMBEDFLEET_SEED=123 python -m pytest -k schedules.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.embed import _at_work
from jobs.embedding.backlog import find_backlog
from jobs.embedding.config import EmbedConfig
from jobs.indexing.present import find_present
from jobs.indexing.source import Embeddings, at_work
from jobs.indexing.steps import publish_after
from operators.corpus.source import Source
from operators.errors import InputError
from operators.index.integrity import named_files
from operators.index.snapshot import (
    FragmentRows,
    IndexIdentity,
    IndexSnapshot,
    ShardRecord,
    TrainedRecord,
    claim_index,
    index_files,
    index_numbers,
    read_index,
    shard_file,
)
from operators.index.vacuum import vacuum_index
from operators.storage import Location, StorageError, create_exclusive, exists, lease, read_bytes, write_whole
from operators.storage.lease import LeaseLost, LeaseTaken, using
from operators.storage.numbered import Numbered
from operators.store import snapshots
from operators.store.dataset import claim_identity
from operators.store.fragments import FragmentRecord, data_file, write_fragment
from operators.store.snapshots import (
    FilesGone,
    latest_snapshot,
    publish,
    read_snapshot,
    snapshot_files,
    snapshot_numbers,
)
from operators.store.vacuum import vacuum
from operators.work.fragment import REJECTED_SCHEMA, Counts, Fragment, FragmentBatch, SourceFile, Unit
from tests.operators.store.stored_fragments import KEEP, embedded, make_identity
from tests.simulated_storage import BUCKET, Actor, World, simulated

QUICK, ALL = 100, 10_000
PARTS = 2
VECTORS, INDEXED = (f"{BUCKET.removeprefix('s3://')}/{folder}" for folder in ("vectors", "index"))


def play_all(seeds: Iterable[int]) -> int:
    """One schedule after another, each of which must hold; returns how many requests there were."""
    return sum(len(play(seed)) for seed in seeds)


def test_schedules() -> None:
    chosen = os.environ.get("EMBEDFLEET_SEED")
    seeds = [int(chosen)] if chosen else range(QUICK)
    assert play_all(seeds) > 50 * len(seeds)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_schedules() -> None:
    assert play_all(range(ALL)) > 50 * ALL


def no_check(*_: object) -> None:
    """In place of a step that is left out."""


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "nothing looks again before it publishes": lambda p: p.setattr(snapshots, "check_files", no_check),
    "a vacuum fences nothing off": lambda p: p.setattr(Numbered, "fence", lambda *_: True),
    "old snapshots give their numbers back": lambda p: p.setattr(
        Numbered, "retire", lambda self, number: lease.delete(self.file(number))
    ),
    "a vacuum takes no notice of who is at work": lambda p: p.setattr(lease.Lease, "users", lambda _: []),
    "nothing of an index is looked at again": lambda p: p.setattr("jobs.indexing.steps._check_files", no_check),
    "nobody waits for a vacuum": lambda p: p.setattr(lease, "_wait_for", no_check),
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "bug", [pytest.param(bug, marks=[pytest.mark.slow] if "numbers" not in bug else []) for bug in BUGS]
)
def test_bugs_are_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises(Broken):
        play_all(range(20 * QUICK))


def test_an_index_goes_on_after_a_vacuum_of_what_it_had_not_finished() -> None:
    """Its first number is fenced off, and there is no snapshot yet."""
    world = World(0, is_harmless=True)
    run = Run(world)

    def leave_a_shard(actor: Actor) -> None:
        index = world.root("index", actor)
        claim_index(index, INDEX)
        write_whole(index / "shards" / f"{'0' * 24}.faiss", b"of a run that died")

    def sweep(actor: Actor) -> None:
        assert vacuum_index(world.root("index", actor), 1, -10).files == 1

    with simulated(world):
        for work in (leave_a_shard, sweep, run.embed, run.index, run.search):
            run.go([work])
    assert list(run.committed["index"]) == [2]


def test_a_seed_is_a_schedule() -> None:
    first, second = play(7), play(7)
    assert first == second
    assert len(first) > 50


class Broken(AssertionError):
    """Something that must hold does not."""


def play(seed: int) -> list[str]:
    """One schedule; returns its requests. Raises Broken, with the seed and the last requests."""
    world = World(seed)
    run = Run(world)
    with simulated(world):
        try:
            run.play()
        except Broken as broken:
            tail = "\n".join(world.log[-60:])
            raise Broken(f"EMBEDFLEET_SEED={seed}: {broken}\n{tail}") from None
    return world.log


class Run:
    """What happens in one world, and what must hold in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.committed: dict[str, dict[int, frozenset[str]]] = {"vectors": {}, "index": {}}  # folder, number, fragments
        self.broken: list[str] = []
        self.parsed: dict[bytes, Named] = {}
        self.contents: dict[str, bytes] = {}
        world.after_change = self.check_change

    def play(self) -> None:
        """Some actors at once, then one after another in peace."""
        draw = self.world.random
        kinds = (self.embed, self.vacuum, self.read, self.index, self.vacuum_index, self.search)
        self.go([self.embed, *draw.choices(kinds, (4, 3, 2, 3, 2, 1), k=draw.randint(5, 9))])
        self.world.is_harmless = True
        self.world.now += 10 * lease.LEASE_SECONDS  # whoever was killed is known to be dead
        for work in (self.embed, self.vacuum, self.index, self.vacuum_index, self.embed, self.read, self.search):
            self.go([work])
        self.check_committed("vectors")
        self.check_committed("index")

    def go(self, works: list[Callable[[Actor], None]]) -> None:
        """Let actors work until all are through."""
        for actor in self.world.run([(work.__name__, work) for work in works]):
            if actor.error is not None and not self.is_expected(actor.error):
                raise Broken(f"{actor.name} ended with {actor.error!r}") from actor.error
        if self.broken:
            raise Broken(self.broken[0])

    def is_expected(self, error: BaseException) -> bool:
        """What a run may end with where storage fails, or where it was held up."""
        if self.world.is_harmless:
            return False
        return isinstance(error, (LeaseLost, LeaseTaken)) or (
            isinstance(error, (StorageError, FileNotFoundError, InputError)) and not isinstance(error, Broken)
        )

    # --- the actors --------------------------------------------------------------------------------------------------

    def embed(self, actor: Actor) -> None:
        """`jobs.embed` without a model: three files, each in one of two versions."""
        dataset = self.world.root("vectors", actor)
        versions = [self.world.random.choice("12") for _ in range(3)]
        files = [SourceFile(f"/in/{i}.jsonl", 100, version) for i, version in enumerate(versions)]
        config = EmbedConfig.model_validate({"source": SOURCE, "model": "none", "output": {"path": dataset.url}})
        identity = IDENTITY
        for _ in range(20):
            with _at_work(dataset):
                backlog = find_backlog(dataset, config, iter(files), identity)
                if backlog.pending:
                    identity = claim_identity(dataset, identity)
                    backlog = backlog.settled({})
                    parts, done = backlog.parts(), list[FragmentRecord]()
                    with using(dataset, "embed"):
                        for unit in backlog.pending:
                            for part in set(range(PARTS)) - set(parts.get(unit.digest, ())):
                                done.append(write_fragment(dataset, identity, batch_of(unit, part)))
                    backlog = backlog.with_records(done)
            with suppress(FilesGone):
                snapshot = publish(dataset, backlog.complete)
                self.committed["vectors"][snapshot.number] = snapshot.keys
                return
        raise Broken(f"{actor.name} does not come to an end")

    def vacuum(self, actor: Actor) -> None:
        """`jobs.vacuum`."""
        draw = self.world.random
        vacuum(self.world.root("vectors", actor), draw.choice((1, 1, 2)), draw.choice((0, 0, 300, 4000)))

    def read(self, actor: Actor) -> None:
        """Read all that the newest snapshot names, under a lease."""
        dataset = self.world.root("vectors", actor)
        numbers = snapshot_numbers(dataset)
        if not numbers:
            return
        with using(dataset, "search", (numbers[-1],)) as held:
            assert held is not None
            if not snapshot_files(dataset).holds(numbers[-1]):
                return
            for record in read_snapshot(dataset, numbers[-1]).records:
                try:
                    read_bytes(data_file(dataset, record.key))
                except FileNotFoundError:
                    held.check()  # one that was held up is told so
                    raise Broken(f"{actor.name} reads a file that is gone") from None

    def index(self, actor: Actor) -> None:
        """`jobs.index` without vectors: a shard for every two fragments."""
        dataset, index = self.world.root("vectors", actor), self.world.root("index", actor)
        source = Embeddings(dataset, IDENTITY, latest_snapshot(dataset))
        if not source.snapshot.number:
            return
        with at_work(source, index):
            present = find_present(index, "sizes")
            self.read_all(actor, [data_file(dataset, key) for key in source.keys])
            claim_index(index, INDEX)
            create_exclusive(index / "trained.faiss", b"trained")
            shards = [shard_of(index, source.records[i : i + 2]) for i in range(0, len(source.records), 2)]
            snapshot = IndexSnapshot(
                number=present.number + 1,
                created="now",
                identity=INDEX,
                trained=TrainedRecord(path="trained.faiss", sha256=sha256(b"trained"), bytes=7, generation=1),
                embeddings_snapshot=source.snapshot.number,
                fragments=source.keys,
                shards=tuple(shards),
            )
            published = publish_after(index, snapshot)
            self.committed["index"][published.number] = frozenset(published.fragments)

    def vacuum_index(self, actor: Actor) -> None:
        """`jobs.vacuum` of an index."""
        draw = self.world.random
        vacuum_index(self.world.root("index", actor), draw.choice((1, 1, 2)), draw.choice((0, 0, 300, 4000)))

    def search(self, actor: Actor) -> None:
        """Open the newest index, under a lease."""
        index = self.world.root("index", actor)
        if not index_numbers(index):
            return
        snapshot = read_index(index)
        with using(index, "search", (snapshot.number,)):
            if index_files(index).holds(snapshot.number):
                self.read_all(actor, [index / file.path for _, file in named_files(snapshot)])

    def read_all(self, actor: Actor, places: Iterable[Location]) -> None:
        """Files that are held by a lease are there, unless their reader was held up."""
        for place in places:
            try:
                read_bytes(place)
            except FileNotFoundError:
                if actor.longest_stall <= lease.LEASE_SECONDS / 2:
                    raise Broken(f"{actor.name} reads {place.name}, which is gone") from None
                raise

    # --- what must hold ----------------------------------------------------------------------------------------------

    def check_change(self, path: str) -> None:
        """No snapshot names a missing or other file, and what is named by its content has one content for ever."""
        entry = self.world.objects.get(path)
        is_named_by_content = path.startswith((f"{VECTORS}/data/", f"{INDEXED}/shards/"))
        if entry is not None and is_named_by_content and self.contents.setdefault(path, entry.data) != entry.data:
            self.broken.append(f"{path} was written with another content")
        root = VECTORS if path.startswith(VECTORS) else INDEXED
        if "/leases/" in path:
            return
        for name, snapshot in self.world.listing(f"{root}/snapshots").items():
            for file, size in self.named(snapshot.data).files.items() if snapshot.data else ():
                stored = self.world.objects.get(f"{root}/{file}")
                if stored is None or (size is not None and len(stored.data) != size):
                    self.broken.append(f"{name} names {file}, which is gone or another")

    def named(self, snapshot: bytes) -> Named:
        """What a snapshot of either kind names."""
        if snapshot not in self.parsed:
            is_of_index = snapshot.startswith(b"{")
            self.parsed[snapshot] = (named_by_index if is_of_index else named_by_vectors)(snapshot)
        return self.parsed[snapshot]

    def check_committed(self, folder: str) -> None:
        """What runs were told is committed is there as they were told, or an empty file that says it was vacuumed."""
        listing = self.world.listing(f"{BUCKET.removeprefix('s3://')}/{folder}/snapshots")
        files = {int(name.rpartition("/")[2].partition(".")[0]): entry.data for name, entry in listing.items()}
        newest = max(number for number, data in files.items() if data)
        committed = self.committed[folder]
        for number, keys in committed.items():
            if number not in files:
                raise Broken(f"snapshot {number} of {folder} was committed and is lost")
            if files[number] and self.named(files[number]).fragments != keys:
                raise Broken(f"snapshot {number} of {folder} was committed with other fragments")
            if not files[number] and number >= newest:
                raise Broken(f"snapshot {number} of {folder} was vacuumed although it is the newest")
        if max(committed) != newest:
            raise Broken(f"the newest snapshot of {folder} is {newest}, committed was {max(committed)}")


@dataclasses.dataclass(frozen=True)
class Named:
    """What a snapshot names: fragments, and files with their sizes (None: any)."""

    fragments: frozenset[str]
    files: dict[str, int | None]


def named_by_vectors(snapshot: bytes) -> Named:
    """Of an embeddings dataset."""
    table = pq.read_table(pa.BufferReader(snapshot), columns=["key", "bytes", "rejected"])
    files: dict[str, int | None] = {}
    for row in table.to_pylist():
        files[f"data/{row['key']}.parquet"] = row["bytes"]
        if row["rejected"]:
            files[f"rejected/{row['key']}.parquet"] = None
    return Named(frozenset(table["key"].to_pylist()), files)


def named_by_index(snapshot: bytes) -> Named:
    """Of an index."""
    read = IndexSnapshot.model_validate_json(snapshot)
    return Named(frozenset(read.fragments), {file.path: file.bytes for _, file in named_files(read)})


def shard_of(index: Location, records: Sequence[FragmentRecord]) -> ShardRecord:
    """A shard of these fragments; one that is on storage is not written again."""
    codes = b"codes" + b"".join(record.key.encode() for record in records)
    ids = b"ids" + codes
    key = f"{sha256(codes)[:24]}-{sha256(ids)[:8]}"
    record = ShardRecord(
        key=key,
        rows=len(records),
        bytes=len(codes),
        sha256=sha256(codes),
        ids_bytes=len(ids),
        ids_sha256=sha256(ids),
        trained_sha256=sha256(b"trained"),
        fragments=tuple(FragmentRows(key=record.key, rows=1) for record in records),
    )
    for ending, content in (("faiss", codes), ("ids.parquet", ids)):
        place = shard_file(index, key, ending)
        if not exists(place):
            write_whole(place, content)
    return record


def sha256(content: bytes) -> str:
    """As index snapshots have it."""
    return hashlib.sha256(content).hexdigest()


INDEX = IndexIdentity(
    requested="Flat",
    factory="Flat",
    why="",
    metric="ip",
    sharding="document",
    dim=2,
    dtype="float32",
    scale=None,
    fingerprint="f" * 64,
    model="none",
    embeddings="s3://bucket/vectors",
    keep=(),
    seed=0,
)
SOURCE = {"path": "/in/*.jsonl", "id": "id"}
IDENTITY = dataclasses.replace(make_identity(dim=2), fragment_rows=16, fragment_bytes=1 << 20)


def batch_of(unit: Unit, part: int) -> FragmentBatch:
    """A fragment of three rows, as the model leaves it; every first part has a rejected row."""
    rows = pa.table(
        {
            "doc_id": [f"{unit.digest}-{part}-{i}" for i in range(3)],
            "source_path": [unit.extents[0].file.path] * 3,
            "source_row": pa.array(range(3), pa.int64()),
            "text": ["a text"] * 3,
            "lang": ["en"] * 3,
        }
    )
    batch = FragmentBatch(Fragment(unit, part, part == PARTS - 1), rows, REJECTED_SCHEMA.empty_table(), Counts(rows=4))
    whole = embedded(batch, IDENTITY)
    rejected = {"doc_id": "x", "source_path": "/in", "source_row": 9, "reason": "no text", "message": ""}
    return whole if part else whole.advance(whole.table, [rejected])


assert KEEP.names == ["lang"]
assert Source.model_validate(SOURCE).id == "id"
