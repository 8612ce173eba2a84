"""Leases: users side by side, one that is alone, the dead told from the living by the storage's clock alone."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from operators.errors import InputError
from operators.storage import Location, lease, list_folder, write_whole
from operators.storage.lease import Lease, LeaseLost, LeaseTaken, holder_of, take, using


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location(str(tmp_path / "place"))


def names(root: Location) -> list[str]:
    return [info.name for info in list_folder(root / "leases")]


def age(root: Location, seconds: float) -> None:
    """All leases look as if their last beats were that long ago."""
    for path in (Path(root.url) / "leases").iterdir():
        os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_one_alone_sees_all_users_and_they_leave_nothing(root: Location) -> None:
    with using(root, "embed"), using(root, "search", (3, 4)):
        with take(root, "vacuum", "vacuum") as alone:
            assert sorted((user.what, user.snapshots) for user in alone.users()) == [
                ("embed", None),
                ("search", (3, 4)),
            ]
        assert len(names(root)) == 2
    assert names(root) == []


def test_of_many_that_want_to_be_alone_one_is(root: Location) -> None:
    together, left = threading.Barrier(16), threading.Barrier(16)

    def attempt(_: int) -> bool:
        together.wait()
        try:
            with take(root, "vacuum", "vacuum"):
                left.wait()
                return True
        except LeaseTaken:
            left.wait()
            return False

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(attempt, range(16))) == 1
    with take(root, "vacuum", "vacuum"):
        pass


def test_a_user_waits_for_the_one_alone_and_not_for_the_dead(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    with take(root, "vacuum", "vacuum") as alone:

        def pause(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:  # it dies: no beat any more
                moment = time.time() - lease.LEASE_SECONDS - 5
                os.utime(alone.file.url, (moment, moment))

        monkeypatch.setattr(lease, "pause", pause)
        with using(root, "embed"):
            assert len(waited) == 3


def test_the_dead_are_no_users_and_what_they_were_alone_at_is_free(root: Location) -> None:
    with using(root, "embed"), take(root, "vacuum", "vacuum") as dead:
        age(root, lease.LEASE_SECONDS + 5)
        with take(root, "vacuum", "vacuum") as alone:
            assert (dead.epoch, alone.epoch) == (1, 2)
            assert alone.users() == []
            with (
                pytest.raises(LeaseTaken, match="^run again later: another vacuum is at work"),
                take(root, "vacuum", "vacuum"),
            ):
                pass


def test_one_that_was_held_up_has_lost_for_good(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    with take(root, "vacuum", "vacuum") as held:
        now = lease.clock()
        monkeypatch.setattr(lease, "clock", lambda: now + lease.LEASE_SECONDS / 2 + 1)
        for act in (held.check, held.renew):
            with pytest.raises(LeaseLost, match="^run again: this vacuum was held up"):
                act()


def test_beats_keep_a_lease_alive(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    with using(root, "embed") as held:
        assert held is not None
        first = held.now()
        end = time.monotonic() + 30
        while held.now() == first and time.monotonic() < end:
            time.sleep(0.02)
        assert held.now() != first


def test_kept_epochs_never_come_twice(root: Location) -> None:
    for epoch in (1, 2, 3):
        with take(root, "refresh", "refresh", keep_epoch=True) as held:
            assert held.epoch == epoch
            found = holder_of(root, "refresh")
            assert found is not None
            assert (found[0], found[1].is_alive) == (epoch, True)
    assert names(root) == ["refresh-00000003.json"]
    assert holder_of(root, "vacuum") is None


def test_who_may_not_write_reads_without_a_lease(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Lease) -> None:
        raise InputError("get access to it")

    monkeypatch.setattr(Lease, "renew", refuse)
    with using(root, "search", (1,), is_optional=True) as held:
        assert held is None
    with pytest.raises(InputError, match="^get access"), using(root, "embed"):
        pass


def test_other_files_are_no_leases(root: Location) -> None:
    for name in ("use-x.json", "vacuum-1.json", "README", "use-.json"):
        write_whole(root / "leases" / name, b"no lease")
    with take(root, "vacuum", "vacuum") as alone:
        assert (alone.epoch, alone.users()) == (1, [])


def test_a_damaged_lease_is_named(root: Location) -> None:
    write_whole(root / "leases" / f"use-{'0' * 32}.json", b"{")
    with take(root, "vacuum", "vacuum") as alone, pytest.raises(InputError, match="^remove .*use-0.*: it is no lease"):
        alone.users()
