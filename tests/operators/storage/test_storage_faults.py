"""S3 through a proxy that breaks requests: nothing is lost, torn or taken for somebody else's."""

from __future__ import annotations

import hashlib
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
from botocore.retries.standard import ExponentialBackoff

from operators.storage import (
    Location,
    StorageError,
    create_exclusive,
    delete,
    exists,
    faults,
    files,
    iter_files,
    list_folder,
    locate,
    open_input,
    read_bytes,
    write_whole,
)
from tests.fault_proxy import PASSING, Fault, FaultProxy
from tests.s3_servers import S3Server

READ_TIMEOUT_SECONDS = 0.5


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tries as ever, without the seconds between them."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.01)
    monkeypatch.setattr(faults, "_FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    """A proxy in front of it that does no harm yet."""
    running = FaultProxy(server.endpoint_url, seed=7).start()
    running.hang_seconds = 2 * READ_TIMEOUT_SECONDS
    yield running
    running.stop()


@pytest.fixture
def direct(server: S3Server) -> Location:
    """A new bucket, without the proxy."""
    return locate(f"s3://{server.make_bucket()}", server.storage_options)


@pytest.fixture
def place(direct: Location, proxy: FaultProxy) -> Location:
    """The same bucket through the proxy, with little patience for hanging requests."""
    config = {"connect_timeout": 2, "read_timeout": READ_TIMEOUT_SECONDS}
    return Location(direct.url, {**direct.options, "endpoint_url": proxy.url, "config_kwargs": config})


def content(i: int) -> bytes:
    """Some bytes that depend on a number; every tenth is large enough to be cut in a body."""
    return hashlib.sha256(b"%d" % i).digest() * (20_000 if i % 10 == 0 else 20)


def use(place: Location, i: int) -> None:
    """Everything that a job does with its storage, with files of its own."""
    write_whole(place / f"w/{i}", content(i))
    assert read_bytes(place / f"w/{i}") == content(i)
    assert create_exclusive(place / f"c/{i}", content(i)), "nobody else creates it"
    assert not create_exclusive(place / f"c/{i}", content(i)), "it is there"
    with open_input(place / f"w/{i}") as stream:
        assert stream.read() == content(i)
    if i % 10 == 0:
        assert len(list_folder(place / "w")) > 0
        delete(place / f"w/{i}")
        assert not exists(place / f"w/{i}")


def check_use_through_faults(place: Location, direct: Location, proxy: FaultProxy, rate: float, times: int) -> None:
    """Many users at once; their files are as they left them."""
    proxy.rate = rate
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda i: use(place, i), range(times)))
    proxy.rate = 0.0
    assert len(list(iter_files(place))) == 1.9 * times
    assert min(proxy.counts[fault] for fault in PASSING) > 2, proxy.counts
    for i in set(range(times)) - set(range(0, times, 10)):
        assert read_bytes(direct / f"w/{i}") == content(i)
        assert read_bytes(direct / f"c/{i}") == content(i)


@pytest.mark.usefixtures("short_pauses")
def test_a_fifth_of_all_requests_may_fail(place: Location, direct: Location, proxy: FaultProxy) -> None:
    check_use_through_faults(place, direct, proxy, rate=0.2, times=100)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.3])
def test_so_they_may_with_pauses_as_in_service(
    place: Location, direct: Location, proxy: FaultProxy, rate: float
) -> None:
    check_use_through_faults(place, direct, proxy, rate, times=200)


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("fault", [pytest.param(f, marks=[pytest.mark.slow] * (f == "hang")) for f in PASSING])
def test_every_operation_outlives_every_fault(
    fault: Fault, place: Location, direct: Location, proxy: FaultProxy
) -> None:
    """The first requests of each operation, more of them than botocore alone would bear for a cut body, go wrong."""
    write_whole(direct / "old", content(0))
    write_whole(direct / "folder/a", content(1))
    operations: list[tuple[Any, Any]] = [
        (lambda: write_whole(place / "new", content(2)), None),
        (lambda: read_bytes(place / "new"), content(2)),
        (lambda: create_exclusive(place / "created", b"1"), True),
        (lambda: create_exclusive(place / "created", b"1"), False),
        (lambda: exists(place / "created"), True),
        (lambda: exists(place / "not there"), False),
        (lambda: delete(place / "created"), None),
        (lambda: [info.name for info in list_folder(place)], ["new", "old"]),
        (lambda: [info.name for info in iter_files(place)], ["a", "new", "old"]),
        (lambda: open_input(place / "old").read(), content(0)),
    ]
    proxy.rate, proxy.faults = 1.0, (fault,)
    for operation, expected in operations:
        proxy.counts.clear()
        proxy.limit = 2
        assert operation() == expected
        assert proxy.num_faults == 2
    assert not exists(direct / "created")


@pytest.mark.usefixtures("short_pauses")
def test_of_racing_writers_one_wins_although_answers_get_lost(place: Location, proxy: FaultProxy) -> None:
    proxy.rate, proxy.faults, proxy.methods = 0.4, ("lost_answer", "cut_body"), frozenset({"PUT"})
    num_writers, keys = 8, [place / f"{i:08d}" for i in range(10)]
    start = threading.Barrier(num_writers)

    def write(_: int) -> list[bool]:
        start.wait()
        return [create_exclusive(key, b"the same of all") for key in keys]

    with ThreadPoolExecutor(num_writers) as threads:
        won = list(threads.map(write, range(num_writers)))
    assert [sum(column) for column in zip(*won, strict=True)] == [1] * len(keys)
    assert proxy.counts["lost_answer"] > 5


@pytest.mark.usefixtures("short_pauses")
def test_a_lost_race_is_told_although_the_look_at_the_winner_fails_for_long(
    place: Location, direct: Location, proxy: FaultProxy
) -> None:
    create_exclusive(direct / "x", b"1")
    proxy.rate, proxy.faults, proxy.methods, proxy.limit = 1.0, ("reset",), frozenset({"HEAD"}), 8
    assert not create_exclusive(place / "x", b"1")
    assert proxy.num_faults == 8  # more than botocore tries


@pytest.mark.usefixtures("short_pauses")
def test_an_upload_in_parts_is_finished_although_its_answer_got_lost(
    place: Location, direct: Location, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PART_BYTES", 5 << 20)
    data = bytes(range(256)) * (12 << 12)
    # POST begins and completes an upload: the answers to both get lost, the second more often than botocore tries.
    proxy.rate, proxy.faults, proxy.methods, proxy.limit = 1.0, ("lost_answer",), frozenset({"POST"}), 3
    write_whole(place / "large", data)
    assert proxy.num_faults == 3
    assert read_bytes(direct / "large") == data
    proxy.rate, proxy.faults, proxy.methods, proxy.limit = 0.2, PASSING, frozenset(), None
    write_whole(place / "large", data[::-1])
    assert read_bytes(direct / "large") == data[::-1]


@pytest.mark.usefixtures("short_pauses")
def test_long_reads_get_through_bodies_that_break(
    place: Location, direct: Location, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_STREAM_BLOCK_BYTES", 1 << 20)
    data = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(300_000))
    write_whole(direct / "large", data)
    proxy.rate, proxy.faults = 0.4, ("cut_body", "short_body", "reset")
    with open_input(place / "large") as stream:
        pieces = iter(lambda: stream.read(1_000_000), b"")
        assert b"".join(pieces) == data
        stream.seek(-1000, 2)
        assert stream.read() == data[-1000:]
    assert proxy.num_faults > 3


@pytest.mark.usefixtures("short_pauses")
def test_a_storage_that_stays_ill_ends_in_one_clear_line(
    place: Location, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_ROUNDS", 2)
    options = {**place.options, "config_kwargs": {"read_timeout": 0.3, "retries": {"max_attempts": 1}}}
    impatient = Location(place.url, options)
    proxy.rate = 1.0
    expected: dict[Fault, str] = {
        "error_500": "made up",
        "slow_down": "made up",
        "hang": "[Tt]imeout",
        "reset": "closed|[Cc]onnect",
        "lost_answer": "closed|[Cc]onnect",
    }
    for fault, said in expected.items():
        proxy.faults = (fault,)
        with pytest.raises(
            StorageError, match=f"run again when the storage is well.*{place.url}/x.*({said})"
        ) as caught:
            write_whole(impatient / "x", b"1")
        assert caught.value.errno is not None
        assert "\n" not in str(caught.value)
        assert place.options["secret"] not in "".join(traceback.format_exception(caught.value))
    assert proxy.counts["slow_down"] == 4  # two rounds of two attempts


def test_every_fault_is_told_apart() -> None:
    """Each fault of the proxy is tested as one that passes or as one that does not."""
    assert set(get_args(Fault)) == {*PASSING, "forbidden"}
