"""Runs, vacuums and readers of one output at once, on an object store that is simulated: a seed is a schedule.

What must hold after every change: a snapshot names no missing or other file. At the end: what a run was told is
committed is there, or was vacuumed as old; a run in peace goes through. A failing seed replays:
EMBEDFLEET_SEED=123 python -m pytest -k schedules.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.embed import _at_work
from jobs.embedding.backlog import find_backlog
from jobs.embedding.config import EmbedConfig
from operators.corpus.source import Source
from operators.errors import InputError
from operators.storage import StorageError, lease, read_bytes
from operators.storage.lease import LeaseLost, LeaseTaken, using
from operators.storage.numbered import Numbered
from operators.store import snapshots
from operators.store.dataset import claim_identity
from operators.store.fragments import FragmentRecord, data_file, write_fragment
from operators.store.snapshots import FilesGone, publish, read_snapshot, snapshot_numbers
from operators.store.vacuum import vacuum
from operators.work.fragment import REJECTED_SCHEMA, Counts, Fragment, FragmentBatch, SourceFile, Unit
from tests.operators.store.stored_fragments import KEEP, embedded, make_identity
from tests.simulated_storage import BUCKET, Actor, World, simulated

QUICK, ALL = 100, 10_000
PARTS = 2
VECTORS = f"{BUCKET.removeprefix('s3://')}/vectors"


def play_all(seeds: Iterable[int]) -> None:
    """One schedule after another."""
    for seed in seeds:
        play(seed)


def test_schedules() -> None:
    chosen = os.environ.get("EMBEDFLEET_SEED")
    play_all([int(chosen)] if chosen else range(QUICK))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_schedules() -> None:
    play_all(range(ALL))


def no_check(*_: object) -> None:
    """In place of a step that is left out."""


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "nothing looks again before it publishes": lambda p: p.setattr(snapshots, "check_files", no_check),
    "a vacuum fences nothing off": lambda p: p.setattr(Numbered, "fence", lambda *_: True),
    "old snapshots give their numbers back": lambda p: p.setattr(
        Numbered, "retire", lambda self, number: lease.delete(self.file(number))
    ),
    "a vacuum takes no notice of who is at work": lambda p: p.setattr(lease.Lease, "users", lambda _: []),
    "nobody waits for a vacuum": lambda p: p.setattr(lease, "_wait_for", no_check),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bug", BUGS)
def test_bugs_are_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises(Broken):
        play_all(range(20 * QUICK))


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
        self.committed: dict[int, frozenset[str]] = {}
        self.broken: list[str] = []
        self.parsed: dict[bytes, dict[str, tuple[int, int]]] = {}
        self.contents: dict[str, bytes] = {}
        world.after_change = self.check_change

    def play(self) -> None:
        """Some actors at once, then a run, a vacuum and a reader in peace."""
        draw = self.world.random
        kinds = draw.choices((self.embed, self.vacuum, self.read), (4, 3, 2), k=draw.randint(4, 8))
        self.go([self.embed, *kinds])
        self.world.is_harmless = True
        for work in (self.embed, self.vacuum, self.embed, self.read):
            self.go([work])
        self.check_committed()

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
                    parts, done = backlog.parts(), list[FragmentRecord]()
                    with using(dataset, "embed"):
                        for unit in backlog.pending:
                            for part in set(range(PARTS)) - set(parts.get(unit.digest, ())):
                                done.append(write_fragment(dataset, identity, batch_of(unit, part)))
                    backlog = backlog.with_records(done)
            with suppress(FilesGone):
                snapshot = publish(dataset, backlog.complete)
                self.committed[snapshot.number] = snapshot.keys
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
            if numbers[-1] not in snapshot_numbers(dataset):
                return
            for record in read_snapshot(dataset, numbers[-1]).records:
                try:
                    read_bytes(data_file(dataset, record.key))
                except FileNotFoundError:
                    held.check()  # one that was held up is told so
                    raise Broken(f"{actor.name} reads a file that is gone") from None

    # --- what must hold ----------------------------------------------------------------------------------------------

    def check_change(self, path: str) -> None:
        """No snapshot names a missing or other file, and a fragment's file has one content for ever."""
        if path.startswith(f"{VECTORS}/data/") and path in self.world.objects:
            data = self.world.objects[path].data
            if self.contents.setdefault(path, data) != data:
                self.broken.append(f"{path} was written with another content")
        if not path.startswith(tuple(f"{VECTORS}/{folder}/" for folder in ("data", "rejected", "snapshots"))):
            return
        for name, entry in self.world.listing(f"{VECTORS}/snapshots").items():
            if not entry.data:
                continue
            for key, (size, rejected) in self.named(entry.data).items():
                stored = self.world.objects.get(f"{VECTORS}/data/{key}.parquet")
                if stored is None or len(stored.data) != size:
                    self.broken.append(f"{name} names data/{key}.parquet, which is gone")
                if rejected and f"{VECTORS}/rejected/{key}.parquet" not in self.world.objects:
                    self.broken.append(f"{name} names rejected/{key}.parquet, which is gone")

    def named(self, snapshot: bytes) -> dict[str, tuple[int, int]]:
        """The fragments of a snapshot, with bytes and rejected rows of each."""
        if snapshot not in self.parsed:
            table = pq.read_table(pa.BufferReader(snapshot), columns=["key", "bytes", "rejected"])
            self.parsed[snapshot] = {row["key"]: (row["bytes"], row["rejected"]) for row in table.to_pylist()}
        return self.parsed[snapshot]

    def check_committed(self) -> None:
        """What runs were told is committed is there as they were told, or an empty file that says it was vacuumed."""
        files = {name: entry.data for name, entry in self.world.listing(f"{VECTORS}/snapshots").items()}
        newest = max(name for name, data in files.items() if data)
        for number, keys in self.committed.items():
            name = f"{VECTORS}/snapshots/{number:08d}.parquet"
            if name not in files:
                raise Broken(f"snapshot {number} was committed and is lost")
            if files[name] and set(self.named(files[name])) != keys:
                raise Broken(f"snapshot {number} was committed with other fragments")
            if not files[name] and name >= newest:
                raise Broken(f"snapshot {number} was vacuumed although it is the newest")
        if max(self.committed) != int(newest[-16:-8]):
            raise Broken(f"the newest snapshot is {newest}, committed was {max(self.committed)}")


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
