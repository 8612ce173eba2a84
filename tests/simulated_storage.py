"""An object store in memory and the actors that use it, of which one does one request at a time, as a seed says.

Each actor is a thread that runs the project's own code; its filesystem (an S3 as s3fs shows it) hands control back
before every request. The scheduler then picks who goes on, and what befalls the request: nothing, the process's death
before or after it, an answer that gets lost, a stall of any length, a listing as it was before the latest change. Only
a bulk deletion is not stalled: that it comes right after the look at the lease is assumed (operators.storage.lease).
Time is the store's; processes are told it too. The same seed gives the same schedule.
"""

from __future__ import annotations

import io
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from operators.storage import Location, faults, files, lease, location
from operators.store import id_hashes, left_out, snapshots

BUCKET = "s3://bucket"
AT_ONCE = 3


class Killed(BaseException):
    """The process is gone: no code of it runs any more, but what Python needs to unwind."""


class Precondition(OSError):
    """How s3fs raises what S3 answers with 412."""

    def __init__(self) -> None:
        super().__init__(22, "PreconditionFailed")
        self.response = {"Error": {"Code": "PreconditionFailed"}, "ResponseMetadata": {"HTTPStatusCode": 412}}


@dataclass
class Actor:
    """A process."""

    name: str
    work: Callable[[Actor], None]
    thread: threading.Thread | None = None
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    wakes: float = 0.0  # asleep until then
    is_stalled: bool = False  # asleep with all its threads: no beats
    longest_stall: float = 0.0
    fate: str = ""  # what befalls the next request
    next_request: str = ""
    is_over: bool = False
    error: BaseException | None = None
    leases: list[lease.Lease] = field(default_factory=list)
    beaten: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """An object."""

    data: bytes
    modified: float
    metadata: dict[str, str]


class World:
    """The store, its clock, and the actors."""

    def __init__(self, seed: int, is_harmless: bool = False) -> None:
        self.random = random.Random(seed)
        self.is_harmless = is_harmless  # no faults any more
        self.now = 1_000_000.0
        self.objects: dict[str, Entry] = {}
        self.before: dict[str, dict[str, Entry]] = {}  # folder -> its listing before the latest change
        self.log: list[str] = []
        self.after_change: Callable[[str], None] = lambda path: None
        self._baton = threading.Semaphore(0)
        self._main = threading.current_thread()
        self._actors: list[Actor] = []

    # --- what actors see -------------------------------------------------------------------------------------------

    def root(self, name: str, actor: Actor) -> Location:
        """A folder of the bucket as an actor sees it."""
        return Location(f"{BUCKET}/{name}", {"world": self, "actor": actor})

    def current(self) -> Actor | None:
        """The actor whose thread this is."""
        return next((a for a in self._actors if a.thread is threading.current_thread()), None)

    def request(self, actor: Actor, what: str, effect: Callable[[bool], Any]) -> Any:
        """Do one request: `effect` is told whether a listing lags behind."""
        if threading.current_thread() is self._main:
            return effect(False)  # a beat, which comes between two requests of its actor
        actor.next_request = what
        fate = self._hand_over(actor)
        self.log.append(f"{self.now:.0f} {actor.name} {what} {fate}".rstrip())
        if fate == "die":
            raise Killed
        result = effect(fate == "lag")
        if fate == "die after":
            raise Killed
        if fate == "lost":
            raise ConnectionResetError(104, "the answer got lost")
        return result

    def sleep(self, seconds: float) -> None:
        """Wait, as an actor."""
        actor = self.current()
        assert actor is not None, "only actors sleep"
        actor.wakes = self.now + seconds
        self._hand_over(actor)

    def _hand_over(self, actor: Actor) -> str:
        if actor.fate == "dead":
            raise Killed
        self._baton.release()
        actor.go.acquire()
        if actor.fate == "dead":
            raise Killed
        fate, actor.fate = actor.fate, ""
        if fate.startswith("die"):
            actor.fate = "dead"
        return fate

    # --- the scheduler -----------------------------------------------------------------------------------------------

    def run(self, works: Sequence[tuple[str, Callable[[Actor], None]]]) -> list[Actor]:
        """Let actors do these things, a few at once; returns them."""
        waiting = [Actor(f"{name}{number}", work) for number, (name, work) in enumerate(works)]
        everyone = list(waiting)
        while waiting or self._actors:
            while waiting and len(self._actors) < AT_ONCE:
                self._start(waiting.pop(0))
            self._let_one_go_on()
            for actor in [a for a in self._actors if a.is_over]:
                self._actors.remove(actor)
                assert actor.thread is not None
                actor.thread.join()
        return everyone

    def _start(self, actor: Actor) -> None:
        def live() -> None:
            actor.go.acquire()
            try:
                if actor.fate != "dead":
                    actor.work(actor)
            except Killed:
                pass
            except BaseException as error:
                actor.error = error
            actor.is_over = True
            self._baton.release()

        actor.thread = threading.Thread(target=live, daemon=True)
        self._actors.append(actor)
        actor.thread.start()

    def _let_one_go_on(self) -> None:
        self.now += self.random.choice((0.0, 1.0, 20.0))
        ready = [actor for actor in self._actors if actor.wakes <= self.now]
        if not ready:
            self.now = min(actor.wakes for actor in self._actors)
            ready = [actor for actor in self._actors if actor.wakes <= self.now]
        self._beat()
        actor = self.random.choice(ready)
        actor.is_stalled = False
        if not self.is_harmless and not actor.fate:
            draw = self.random.random()
            if draw < 0.012 and not actor.next_request.startswith("bulk"):
                seconds = self.random.choice((50, 400, 700, 3000))
                actor.is_stalled, actor.wakes = True, self.now + seconds
                actor.longest_stall = max(actor.longest_stall, seconds)
                return
            fates = ("die", "die after", "lost", "lost", "lag", "lag", "lag", "lag", "lag", "lag")
            actor.fate = self.random.choice(fates) if draw < 0.11 else ""
        actor.go.release()
        self._baton.acquire()

    def _beat(self) -> None:
        for actor in self._actors:
            for held in list(actor.leases):
                due = actor.beaten.get(id(held), 0.0) + held.seconds / 10
                if not actor.is_stalled and actor.fate != "dead" and self.now >= due:
                    actor.beaten[id(held)] = self.now
                    try:
                        held.renew()
                    except lease.LeaseLost:
                        actor.leases.remove(held)

    # --- the store ---------------------------------------------------------------------------------------------------

    def change(self, path: str, entry: Entry | None) -> None:
        """Put or remove an object."""
        folder = path.rpartition("/")[0]
        self.before[folder] = self.listing(folder)
        if entry is None:
            self.objects.pop(path, None)
        else:
            self.objects[path] = entry
        self.after_change(path)

    def listing(self, folder: str) -> dict[str, Entry]:
        """The objects directly in a folder."""
        return {p: e for p, e in self.objects.items() if p.rpartition("/")[0] == folder}


class FakeS3:
    """What of s3fs is used."""

    def __init__(self, world: World, actor: Actor) -> None:
        self._world, self._actor = world, actor

    def _strip_protocol(self, url: str) -> str:
        return url.removeprefix("s3://")

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.removeprefix("s3://").partition("/")
        return bucket, key, None

    def invalidate_cache(self) -> None:
        pass

    def _do(self, what: str, effect: Callable[[bool], Any]) -> Any:
        return self._world.request(self._actor, what, effect)

    def _entry(self, path: str) -> Entry:
        if path not in self._world.objects:
            raise FileNotFoundError(path)
        return self._world.objects[path]

    def cat_file(self, path: str) -> bytes:
        data: bytes = self._do(f"get {path}", lambda _: self._entry(path).data)
        return data

    def open(self, path: str, mode: str, **_: Any) -> io.BytesIO:
        assert mode == "rb"
        return io.BytesIO(self._do(f"open {path}", lambda _: self._entry(path).data))

    def info(self, path: str) -> dict[str, Any]:
        def look(_: bool) -> dict[str, Any]:
            entry = self._entry(path)
            return {
                "name": path,
                "type": "file",
                "size": len(entry.data),
                "LastModified": entry.modified,
                "ETag": str(hash(entry.data)),
            }

        info: dict[str, Any] = self._do(f"head {path}", look)
        return info

    def exists(self, path: str) -> bool:
        return bool(self._do(f"head {path}", lambda _: path in self._world.objects))

    def size(self, path: str) -> int:
        return int(self.info(path)["size"])

    def pipe_file(
        self, path: str, data: bytes, mode: str = "overwrite", Metadata: dict[str, str] | None = None, **_: Any
    ) -> None:
        def put(_: bool) -> None:
            if mode == "create" and path in self._world.objects:
                raise Precondition
            self._world.change(path, Entry(bytes(data), float(int(self._world.now)), Metadata or {}))

        self._do(f"{'create' if mode == 'create' else 'put'} {path} ({len(data)})", put)

    def rm_file(self, path: str) -> None:
        self._do(f"delete {path}", lambda _: self._world.change(path, None))

    def call_s3(self, method: str, **request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self, f"_{method}")(**request)
        return answer

    def _head_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        path = f"{Bucket}/{Key}"
        return {"Metadata": self._do(f"head {path}", lambda _: self._entry(path).metadata)}

    def _list_objects_v2(self, Bucket: str, Prefix: str, Delimiter: str) -> dict[str, Any]:
        folder = f"{Bucket}/{Prefix}".rstrip("/")

        def look(is_behind: bool) -> dict[str, Any]:
            world = self._world
            found = world.before.get(folder, {}) if is_behind else world.listing(folder)
            items = [
                {
                    "Key": path.partition("/")[2],
                    "Size": len(entry.data),
                    "LastModified": entry.modified,
                    "ETag": str(hash(entry.data)),
                }
                for path, entry in sorted(found.items())
            ]
            return {"Contents": items}

        answer: dict[str, Any] = self._do(f"list {folder}", look)
        return answer

    def _delete_objects(self, Bucket: str, Delete: dict[str, Any]) -> dict[str, Any]:
        def remove(_: bool) -> dict[str, Any]:
            for item in Delete["Objects"]:
                self._world.change(f"{Bucket}/{item['Key']}", None)
            return {}

        answer: dict[str, Any] = self._do(f"bulk deletion of {len(Delete['Objects'])}", remove)
        return answer


class OneByOne:
    """A pool of threads without threads, so that a schedule depends on the seed alone."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> OneByOne:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        return map(work, items)


@contextmanager
def simulated(world: World) -> Iterator[None]:
    """The project's code with this store, clock and names in place of the real ones."""

    @contextmanager
    def beating(held: lease.Lease) -> Iterator[None]:
        actor = world.current()
        assert actor is not None
        actor.leases.append(held)
        actor.beaten[id(held)] = world.now
        try:
            yield
        finally:
            if held in actor.leases:
                actor.leases.remove(held)

    filesystems: dict[int, tuple[Actor, FakeS3]] = {}

    def filesystem(url: str, options: Any) -> FakeS3:
        actor = options["actor"]
        return filesystems.setdefault(id(actor), (actor, FakeS3(world, actor)))[1]

    names = random.Random(world.random.random())
    own_uuid = SimpleNamespace(uuid4=lambda: uuid.UUID(int=names.getrandbits(128)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(location, "_filesystem", filesystem)
        patch.setattr(faults, "time", SimpleNamespace(sleep=world.sleep, monotonic=lambda: world.now))
        patch.setattr(faults, "random", SimpleNamespace(random=lambda: 0.5))
        patch.setattr(lease, "clock", lambda: world.now)
        patch.setattr(lease, "pause", world.sleep)
        patch.setattr(lease, "beating", beating)
        for module in (lease, files):
            patch.setattr(module, "uuid", own_uuid)
        for module in (snapshots, id_hashes, left_out):
            patch.setattr(module, "ThreadPoolExecutor", OneByOne)
        yield
