"""Who is at work in a folder of a storage, told by files whose ages the storage itself measures.

FOLDER/leases/use-<id>.json       a user: any number side by side
FOLDER/leases/<name>-<epoch>.json a holder that must be alone: the greatest epoch is it, created exclusively by the next

A file is written anew (a beat) while its owner lives, so an owner is alive if the storage saw its last beat less than
its `seconds` ago, on the storage's own clock: no machine's clock matters. Whoever writes its own file before it lists
the others is seen by them or sees them, also where a listing lags behind by the latest change.

An owner that was held up longer than half of its lease has lost it for good, by a clock that goes on in sleep: it must
call `check` right before what others must be kept from. What no storage can keep out is a process that is frozen
between that call and the request after it, for the other half of its lease and more.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from operators.errors import InputError
from operators.storage.faults import StorageError
from operators.storage.files import create_exclusive, delete, read_bytes, write_whole
from operators.storage.listing import file_info, list_folder
from operators.storage.location import Location

logger = logging.getLogger(__name__)

LEASE_SECONDS = 600.0
_BEATS_A_LEASE = 10
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # Linux's monotonic clock stands still in sleep
_EPOCH = re.compile(r"(?P<name>[a-z]+)-(?P<epoch>\d{8})\.json")
_USER = re.compile(r"use-[0-9a-f]{32}\.json")


class LeaseTaken(StorageError):
    """Another process is the one that may be at this."""


class LeaseLost(StorageError):
    """This process was held up for so long that others take it for dead."""


@dataclass(frozen=True, slots=True)
class Holder:
    """What is known of the owner of a lease."""

    what: str  # the job
    snapshots: tuple[int, ...] | None  # which it reads; None: it may use anything that is there
    idle_seconds: float | None  # since its last beat; None where the storage does not say
    seconds: float  # of idleness after which it counts as dead
    is_released: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether it is to be reckoned with; so it is where its age is not known."""
        return not self.is_released and (self.idle_seconds is None or self.idle_seconds <= self.seconds)


class Lease:
    """A file that says that this process is at work; `epoch` is 0 for users."""

    def __init__(
        self, root: Location, file: Location, what: str, seconds: float, snapshots: tuple[int, ...] | None, epoch: int
    ) -> None:
        self.file, self.epoch, self.seconds = file, epoch, seconds
        self._root, self._what, self._snapshots = root, what, snapshots
        self._renewed = clock()

    def content(self, is_released: bool = False) -> bytes:
        """What others read of it."""
        facts = {
            "what": self._what,
            "snapshots": self._snapshots,
            "seconds": self.seconds,
            "is_released": is_released,
        }
        return json.dumps(facts).encode()

    def check(self) -> None:
        """Raise LeaseLost where the last beat that got through is too long ago."""
        if clock() - self._renewed > self.seconds / 2:
            raise LeaseLost(errno.ESTALE, f"run again: this {self._what} was held up for so long that others go on")

    def renew(self) -> None:
        """Write the file anew; raises LeaseLost where it is too late for that."""
        self.check()
        begun = clock()
        write_whole(self.file, self.content())
        self._renewed = begun

    def now(self) -> float | None:
        """The time of the last beat on the storage's clock, in seconds since the epoch; None where it does not say."""
        info = file_info(self.file)
        return None if info is None else info.modified

    def users(self) -> list[Holder]:
        """The users that are alive, without this lease."""
        now = self.now()
        names = (info.name for info in list_folder(self._root / "leases"))
        found = (_holder(self._root / "leases" / name, now) for name in names if _USER.fullmatch(name))
        return [holder for holder in found if holder is not None and holder.is_alive]


@contextmanager
def using(
    root: Location,
    what: str,
    snapshots: tuple[int, ...] | None = None,
    is_optional: bool = False,
    alone: str = "vacuum",
) -> Iterator[Lease | None]:
    """Say that this process uses a folder (snapshots that it reads, or anything), once no holder of `alone` is at work.

    `is_optional`: go on without (None) where the storage refuses writes, as it may to a reader.
    """
    name = f"use-{uuid.uuid4().hex}.json"
    lease = Lease(root, root / "leases" / name, what, LEASE_SECONDS, snapshots, 0)
    try:
        lease.renew()
    except InputError as error:
        if not is_optional:
            raise
        logger.info("%s goes on without a lease: %s", what, error)
        yield None
        return
    try:
        with beating(lease):
            _wait_for(root, alone, lease)
            yield lease
    finally:
        _forget(lease.file)


@contextmanager
def take(root: Location, name: str, what: str, keep_epoch: bool = False) -> Iterator[Lease]:
    """Be the one that is at `name` (lower-case letters); raises LeaseTaken where another is.

    `keep_epoch` leaves the file behind, so that no epoch comes twice: for those that fence what they write by it.
    """
    epochs = _epochs(root, name)
    if epochs:
        holder = _judged(root, _epoch_file(root, name, epochs[-1]))
        if holder is not None and holder.is_alive:
            raise _taken(root, name, holder)
    epoch = (epochs or [0])[-1] + 1
    lease = Lease(root, _epoch_file(root, name, epoch), what, LEASE_SECONDS, None, epoch)
    if not create_exclusive(lease.file, lease.content()):
        raise _taken(root, name, _judged(root, lease.file))
    try:
        with beating(lease):
            yield lease
    finally:
        for older in epochs:
            _forget(_epoch_file(root, name, older))
        if not keep_epoch:
            _forget(lease.file)
        elif _is_kept(lease):
            write_whole(lease.file, lease.content(is_released=True))


def _is_kept(lease: Lease) -> bool:
    try:
        lease.check()
    except LeaseLost:
        return False
    return True


def holder_of(root: Location, name: str) -> tuple[int, Holder] | None:
    """The greatest epoch of `name` and its owner, alive or not; None where there was never one."""
    epochs = _epochs(root, name)
    holder = _judged(root, _epoch_file(root, name, epochs[-1])) if epochs else None
    return None if holder is None else (epochs[-1], holder)


def clock() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


@contextmanager
def beating(lease: Lease) -> Iterator[None]:
    """Renew a lease now and then, in a thread."""
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(lease.renew, lease.seconds, ended), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _beat(renew: Callable[[], None], seconds: float, ended: threading.Event) -> None:
    while not ended.wait(seconds / _BEATS_A_LEASE):
        try:
            renew()
        except LeaseLost as error:
            logger.warning("%s", error)
            return
        except Exception as error:  # of the storage: the next beat may get through, and `check` tells if none does
            logger.warning("a lease could not be renewed: %s", error)


def _wait_for(root: Location, name: str, lease: Lease) -> None:
    """Wait until nobody is at `name`; `lease` was renewed before, so whoever begins now sees it."""
    told = False
    while True:
        epochs = _epochs(root, name)
        holder = _holder(_epoch_file(root, name, epochs[-1]), lease.now()) if epochs else None
        if holder is None or not holder.is_alive:
            return
        if not told:
            logger.warning("waiting for the %s that is at work at %s", holder.what, root)
            told = True
        pause(min(2.0, holder.seconds / 4))
        lease.renew()


def _taken(root: Location, name: str, holder: Holder | None) -> LeaseTaken:
    idle = f", last heard of {holder.idle_seconds:.0f} s ago" if holder and holder.idle_seconds is not None else ""
    return LeaseTaken(errno.EBUSY, f"run again later: another {name} is at work at {root}{idle}")


def _epoch_file(root: Location, name: str, epoch: int) -> Location:
    return root / "leases" / f"{name}-{epoch:08d}.json"


def _epochs(root: Location, name: str) -> list[int]:
    found = (_EPOCH.fullmatch(info.name) for info in list_folder(root / "leases"))
    return sorted(int(match["epoch"]) for match in found if match and match["name"] == name)


def _judged(root: Location, file: Location) -> Holder | None:
    """The owner of a lease by the storage's time now, which a file written for that tells."""
    probe = root / "leases" / f"now-{uuid.uuid4().hex}.json"
    write_whole(probe, b"{}")
    try:
        info = file_info(probe)
        return _holder(file, info.modified if info is not None else None)
    finally:
        _forget(probe)


def _holder(file: Location, now: float | None) -> Holder | None:
    """The owner of a lease; None where it is gone."""
    info = file_info(file)
    if info is None:
        return None
    try:
        facts = json.loads(read_bytes(file))
        idle = now - info.modified if now is not None and info.modified is not None else None
        snapshots = None if facts["snapshots"] is None else tuple(facts["snapshots"])
        return Holder(str(facts["what"]), snapshots, idle, float(facts["seconds"]), bool(facts["is_released"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"remove {file}: it is no lease") from None


def _forget(file: Location) -> None:
    try:
        delete(file)
    except Exception as error:  # it expires by itself, and what went wrong before matters more
        logger.warning("%s could not be removed: %s", file, error)
