"""Files, races, listings and messages, on local files, memory, moto and Ceph alike."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from operators.errors import InputError
from operators.storage import (
    FileInfo,
    Location,
    StorageError,
    create_exclusive,
    delete,
    exists,
    files,
    holds_secret,
    iter_files,
    list_folder,
    locate,
    open_input,
    read_bytes,
    redact,
    write_whole,
)
from operators.storage.cache import Cache
from tests.fault_proxy import FaultProxy
from tests.s3_servers import S3Server

SERVERS = ("moto_server", "rgw_server")


def a_place(kind: str, request: pytest.FixtureRequest, tmp_path: Path, **options: Any) -> Location:
    """An empty folder on a storage of that kind."""
    if kind == "local":
        return locate(str(tmp_path / "place"))
    if kind == "memory":
        return locate(f"memory://{uuid.uuid4().hex}")
    server: S3Server = request.getfixturevalue(kind)
    return locate(f"s3://{server.make_bucket()}/some/place", {**server.storage_options, **options})


@pytest.fixture(params=["local", "memory", *SERVERS])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder on each storage."""
    return a_place(request.param, request, tmp_path)


@pytest.fixture(params=["local", *SERVERS])
def shared_place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder on each storage that several processes may share."""
    return a_place(request.param, request, tmp_path)


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No AWS settings but those that a test makes, and no filesystem left from others."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def urls(infos: list[FileInfo] | Iterator[FileInfo], below: Location) -> list[str]:
    """Paths relative to a folder, in the order given."""
    return [info.url.removeprefix(f"{below.url}/") for info in infos]


# --- single files ------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_until_it_is_replaced_or_deleted(place: Location) -> None:
    file = place / "folder" / "it's a \U0001f600 name, #1 + 50%"
    assert not exists(file)
    write_whole(file, b"one")
    assert exists(file)
    assert read_bytes(file) == b"one"
    write_whole(file, pa.py_buffer(b"the second"))
    assert read_bytes(file) == b"the second"
    write_whole(file, b"")
    assert read_bytes(file) == b""
    delete(file)
    delete(file)
    assert not exists(file)
    assert list_folder(place / "folder", hidden=True) == []


def test_what_is_missing_is_named(place: Location) -> None:
    file = place / "nowhere" / "nothing"
    with pytest.raises(FileNotFoundError) as caught:
        read_bytes(file)
    assert caught.value.filename == file.url
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_input(file)
    assert list_folder(place / "nowhere") == []
    assert list(iter_files(file)) == []
    assert list(iter_files(place / "nowhere" / "*.parquet")) == []


def test_create_exclusive_keeps_the_first_even_of_equals(place: Location) -> None:
    file = place / "snapshots" / "1"
    assert create_exclusive(file, b"first")
    assert not create_exclusive(file, b"second")
    assert not create_exclusive(file, b"first")
    assert read_bytes(file) == b"first"
    delete(file)
    assert create_exclusive(file, b"third")
    assert urls(list_folder(place / "snapshots", hidden=True), place) == ["snapshots/1"]


def test_of_racing_writers_exactly_one_creates(shared_place: Location) -> None:
    keys, num_writers = [shared_place / f"{i:08d}" for i in range(20)], 16
    start = threading.Barrier(num_writers)

    def write(writer: int) -> list[bool]:
        start.wait()
        # Half of the writers bring the same bytes: also of those only one may take it for its own.
        return [create_exclusive(key, b"%d" % (writer % 8) * 1000) for key in keys]

    with ThreadPoolExecutor(num_writers) as threads:
        won = list(threads.map(write, range(num_writers)))
    for i, key in enumerate(keys):
        winners = [writer for writer in range(num_writers) if won[writer][i]]
        assert len(winners) == 1
        assert read_bytes(key) == b"%d" % (winners[0] % 8) * 1000


def test_readers_never_see_half_a_file(shared_place: Location) -> None:
    file, sizes = shared_place / "data", (100_000, 1_000_000, 300_000)
    write_whole(file, b"\0" * sizes[0])
    is_over = threading.Event()

    def overwrite(writer: int) -> None:
        for turn in range(10):
            write_whole(file, bytes([writer * 16 + turn]) * sizes[turn % 3])

    def read() -> int:
        turns = 0
        while not is_over.is_set() or not turns:
            content = read_bytes(file)
            assert len(content) in sizes
            assert content == content[:1] * len(content)
            turns += 1
        return turns

    with ThreadPoolExecutor(5) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        writers = [threads.submit(overwrite, writer) for writer in (1, 2)]
        for writer in writers:
            writer.result()
        is_over.set()
        assert all(reader.result() for reader in readers)


def test_a_killed_writer_leaves_the_old_file_and_nothing_visible(tmp_path: Path) -> None:
    file = locate(str(tmp_path)) / "data"
    write_whole(file, b"\0" * 20_000_000)
    code = (
        "import sys, itertools; from operators.storage import locate, write_whole; print('up', flush=True)\n"
        "for i in itertools.count(): write_whole(locate(sys.argv[1]), bytes([i % 256]) * 20_000_000)"
    )
    for _ in range(3):
        command = [sys.executable, "-c", code, file.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while not any(name.startswith(".writing-") for name in os.listdir(tmp_path)):
                assert writer.poll() is None
            writer.send_signal(signal.SIGKILL)
        content = read_bytes(file)
        assert len(content) == 20_000_000
        assert content == content[:1] * len(content)
        assert urls(list_folder(locate(str(tmp_path))), locate(str(tmp_path))) == ["data"]


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_whole(locate(str(tmp_path / "a")), b"")
        create_exclusive(locate(str(tmp_path / "b")), b"")
    finally:
        os.umask(old)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o640]


@pytest.mark.parametrize("kind", SERVERS)
def test_large_files_go_up_in_parts_and_whole(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PART_BYTES", 5 << 20)
    file, data = a_place(kind, request, tmp_path) / "large", os.urandom(13 << 20)
    write_whole(file, data)
    assert "-" in next(iter_files(file)).version  # the etag of an upload in parts ends in their number
    assert read_bytes(file) == data
    assert not create_exclusive(file, data)


def test_streams_read_anywhere(place: Location) -> None:
    content = os.urandom(3_000_000)
    write_whole(place / "bytes", content)
    with open_input(place / "bytes") as stream:
        assert stream.seekable()
        assert stream.read(5) == content[:5]
        assert stream.seek(-7, os.SEEK_END) == len(content) - 7
        assert stream.read() == content[-7:]
        assert stream.read(1) == b""
        stream.seek(1_000_000)
        assert stream.read(1_500_000) == content[1_000_000:2_500_000]
        assert stream.tell() == 2_500_000
    assert stream.closed

    write_whole(place / "lines.gz", gzip.compress(b"".join(b"%d\n" % i for i in range(10_000))))
    with open_input(place / "lines.gz") as stream, gzip.open(stream) as lines:
        assert [int(line) for line in lines] == list(range(10_000))

    table = pa.table({"a": range(10_000), "b": [str(i) for i in range(10_000)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=1000)
    write_whole(place / "rows.parquet", sink.getvalue())
    with open_input(place / "rows.parquet") as stream:
        assert pq.ParquetFile(stream).read_row_group(7).equals(table.slice(7000, 1000))


@pytest.mark.parametrize("kind", SERVERS)
def test_a_file_replaced_while_it_is_read_is_not_mixed_up(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    file = a_place(kind, request, tmp_path) / "data"
    write_whole(file, b"1" * 30_000_000)
    with open_input(file) as stream:
        assert stream.read(10) == b"1" * 10
        write_whole(file, b"2" * 30_000_000)
        stream.seek(20_000_000)
        with pytest.raises(StorageError, match="was replaced while it was read"):
            stream.read(10)


# --- listings ----------------------------------------------------------------------------------------------------

TREE = (
    "a.txt",
    "a/b.txt",
    "a/c/d.txt",
    "a/c/e.csv",
    "b/b.txt",
    "b/[1].txt",
    "z.csv",
    ".hidden.txt",
    "_SUCCESS",
    "a/_temporary/x.txt",
    "a/.cache/y.txt",
)


@pytest.fixture
def tree(place: Location) -> Location:
    """A folder with TREE in it."""
    for name in TREE:
        write_whole(place / name, name.encode())
    return place


def test_every_file_of_a_tree_in_the_same_order_everywhere(tree: Location) -> None:
    found = list(iter_files(tree))
    assert urls(found, tree) == ["a.txt", "a/b.txt", "a/c/d.txt", "a/c/e.csv", "b/[1].txt", "b/b.txt", "z.csv"]
    for info in found:
        assert read_bytes(locate(info.url, tree.options)) == urls([info], tree)[0].encode()
        assert info.size == len(urls([info], tree)[0])
        assert info.modified is not None
        assert info.modified > 1.6e9
        assert info.name == info.url.rsplit("/", 1)[1]
    assert list(iter_files(locate(f"{tree.url}/", tree.options))) == found


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("*", ["a.txt", "a/b.txt", "a/c/d.txt", "a/c/e.csv", "b/[1].txt", "b/b.txt", "z.csv"]),
        ("?.csv", ["z.csv"]),
        ("[bz]*", ["b/[1].txt", "b/b.txt", "z.csv"]),
        ("[!a]*", ["b/[1].txt", "b/b.txt", "z.csv"]),
        ("*/b.txt", ["a/b.txt", "b/b.txt"]),
        ("a/*/*", ["a/c/d.txt", "a/c/e.csv"]),
        ("**/*.txt", ["a.txt", "a/b.txt", "a/c/d.txt", "b/[1].txt", "b/b.txt"]),
        ("a/**", ["a/b.txt", "a/c/d.txt", "a/c/e.csv"]),
        ("a*/**", ["a/b.txt", "a/c/d.txt", "a/c/e.csv"]),
        ("**/c/*", ["a/c/d.txt", "a/c/e.csv"]),
        ("**/c/**/*.csv", ["a/c/e.csv"]),
        ("a/_*/*", ["a/_temporary/x.txt"]),
        (".*", [".hidden.txt"]),
        ("a/_temporary", ["a/_temporary/x.txt"]),
        ("a/c/e.csv", ["a/c/e.csv"]),
        ("_SUCCESS", ["_SUCCESS"]),
        ("b/[1].txt", ["b/[1].txt"]),
        ("c*", []),
        ("a/b.txt/*", []),
    ],
)
def test_globs(pattern: str, expected: list[str], tmp_path: Path) -> None:
    for place in (locate(str(tmp_path)), locate(f"memory://{uuid.uuid4().hex}")):
        for name in TREE:
            write_whole(place / name, name.encode())
        assert urls(iter_files(place / pattern), place) == expected


@pytest.mark.parametrize("kind", SERVERS)
def test_globs_and_pages_on_s3(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = a_place(kind, request, tmp_path, s3_additional_kwargs={"MaxKeys": 2})
    for name in TREE:
        write_whole(place / name, name.encode())
    assert urls(iter_files(place), place) == sorted(name for name in TREE if "_" not in name and "/." not in name)[1:]
    assert urls(iter_files(place / "**/*.txt"), place) == ["a.txt", "a/b.txt", "a/c/d.txt", "b/[1].txt", "b/b.txt"]
    assert urls(iter_files(place / "b/[1].txt"), place) == ["b/[1].txt"]
    bucket = locate(place.url.removesuffix("/some/place"), place.options)
    assert urls(iter_files(bucket / "s*/*/a.txt"), place) == ["a.txt"]
    assert len(list(iter_files(bucket))) == 7


def test_list_folder_is_flat_and_never_stale(place: Location) -> None:
    for name in ("b", "a", "sub/c", ".writing-123"):
        write_whole(place / name, b"1")
    assert urls(list_folder(place), place) == ["a", "b"]
    assert urls(list_folder(place, hidden=True), place) == [".writing-123", "a", "b"]
    others = Location(place.url, {**place.options, "skip_instance_cache": True})  # as another process would
    write_whole(others / "d", b"22")
    delete(others / "a")
    assert urls(list_folder(place), place) == ["b", "d"]
    assert not exists(place / "a")
    assert [info.size for info in iter_files(place)] == [1, 22 // 11, 1]


def test_a_replaced_file_has_another_version(place: Location) -> None:
    file = place / "data"
    write_whole(file, b"one")
    (before,) = list_folder(place)
    assert [info.version for info in iter_files(file)] == [before.version]
    write_whole(file, b"two")
    (after,) = list_folder(place)
    assert after.version != before.version


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "circle").symlink_to(tmp_path)
    (tmp_path / "real" / "nowhere").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    place = locate(str(tmp_path))
    assert urls(iter_files(place), place) == ["linked/a.txt", "real/a.txt"]


# --- locations ---------------------------------------------------------------------------------------------------


def test_urls_are_normalised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = {
        "docs/../x.txt": f"{tmp_path}/x.txt",
        "~/x": f"{tmp_path}/home/x",
        "file:///data//x/": "/data/x",
        "/": "/",
        "s3://bucket/key/": "s3://bucket/key",
        "s3a://bucket//key": "s3://bucket//key",
        "memory://x/*.txt": "memory://x/*.txt",
    }
    assert {url: locate(url, {"anon": True} if "s3" in url else None).url for url in given} == given
    assert (locate("/") / "x").url == "/x"
    assert (locate("s3://bucket", {"anon": True}) / "x").path == "bucket/x"


def test_locations_travel_and_keep_their_secrets() -> None:
    location = locate("s3://bucket/x", {"key": "the-key", "secret": "the-secret"})
    again = pickle.loads(pickle.dumps(location))
    assert again == location
    assert again.options == location.options
    assert hash(again) == hash(location)
    assert "the-" not in f"{location} {location!r} {[location]} {location / 'y'}"
    assert repr(Location("ftp://me:pass@host/x")) == "Location('ftp://***@host/x')"


# --- faults of the config and of the machine ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("", {}, "give a path"),
        ("s4://bucket/x", {}, "check the scheme of 's4://bucket/x'"),
        ("s3://", {}, "name a bucket"),
        ("s3://bucket/x", {"key": "k", "username": "u"}, "check storage_options for 's3://bucket/x'.*key or username"),
    ],
)
def test_bad_locations_are_refused(url: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        locate(url, options)


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_missing_driver_is_named() -> None:
    with pytest.raises(InputError, match=r"install the package for gs:// paths.*gcsfs"):
        locate("gs://bucket/x")


def test_unknown_options_are_named(moto_server: S3Server) -> None:
    for options in ({"secrets": "x"}, {"client_kwargs": {"regio": "x"}}, {"config_kwargs": {"read_timeouts": 1}}):
        with pytest.raises(InputError, match=r"check storage_options for s3://bucket/x.*(secrets|regio|read_timeouts)"):
            read_bytes(locate("s3://bucket/x", {**moto_server.storage_options, **options}))


@pytest.mark.usefixtures("bare_environment")
def test_credentials_come_from_the_environment_or_are_asked_for(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = moto_server.make_bucket()
    with pytest.raises(InputError, match="give credentials for s3://"):
        read_bytes(locate(f"s3://{bucket}/x", {"endpoint_url": moto_server.endpoint_url}))
    with pytest.raises(InputError, match="give credentials for s3://"):
        read_bytes(locate(f"s3://{bucket}/x", {"endpoint_url": moto_server.endpoint_url, "key": "alone"}))
    for name, value in moto_server.environment.items():
        monkeypatch.setenv(name, value)
    write_whole(locate(f"s3://{bucket}/x"), b"1")
    assert read_bytes(locate(f"s3://{bucket}/x")) == b"1"


@pytest.mark.parametrize("kind", SERVERS)
def test_a_missing_bucket_is_named(kind: str, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(kind)
    place = locate("s3://no-such-bucket-here/x", server.storage_options)
    for use in (
        lambda: write_whole(place, b""),
        lambda: create_exclusive(place, b""),
        lambda: list_folder(place),
        lambda: list(iter_files(place)),
        lambda: list(iter_files(place / "*")),
    ):
        with pytest.raises(InputError, match="check the bucket's name: there is none for s3://no-such-bucket-here/x"):
            use()


def uses(place: Location) -> dict[str, Any]:
    """Every way to ask a storage for something."""
    return {
        "read": lambda: read_bytes(place / "x"),
        "write": lambda: write_whole(place / "x", b""),
        "create": lambda: create_exclusive(place / "x", b""),
        "exists": lambda: exists(place / "x"),
        "open": lambda: open_input(place / "x"),
        "delete": lambda: delete(place / "x"),
        "list": lambda: list_folder(place),
        "iterate": lambda: list(iter_files(place)),
    }


def whole_text(error: BaseException) -> str:
    """All that a log could show of an exception."""
    return "".join(traceback.format_exception(error)) + repr(error)


@pytest.mark.parametrize("options", [{"secret": "wrong-secret-1"}, {"key": "wrong-key-12"}, {"anon": True}])
def test_refusals_of_ceph_say_what_to_do_and_keep_secrets(rgw_server: S3Server, options: dict[str, Any]) -> None:
    place = locate(f"s3://{rgw_server.make_bucket()}", {**rgw_server.storage_options, **options})
    for name, use in uses(place).items():
        with pytest.raises(InputError, match=f"(check the credentials|get access to).*{place.url}") as caught:
            use()
        for secret in (rgw_server.secret, rgw_server.key, "wrong-secret-1", "wrong-key-12"):
            assert secret not in whole_text(caught.value), name


def test_a_refusal_is_not_tried_again(moto_server: S3Server) -> None:
    bucket = moto_server.make_bucket()
    proxy = FaultProxy(moto_server.endpoint_url, rate=1.0, faults=("forbidden",)).start()
    try:
        place = locate(f"s3://{bucket}", {**moto_server.storage_options, "endpoint_url": proxy.url})
        for use in uses(place).values():
            proxy.counts.clear()
            with pytest.raises(InputError, match=f"(check the credentials for|get access to) {place.url}"):
                use()
            assert proxy.counts == {"forbidden": 1}
    finally:
        proxy.stop()


def test_an_endpoint_where_nothing_listens_is_named_without_its_password() -> None:
    config = {"retries": {"max_attempts": 0}}
    options = {"key": "the-key", "secret": "the-secret", "config_kwargs": config}
    place = locate("s3://bucket", {**options, "endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(StorageError, match=r"check endpoint_url .* nothing answers for s3://bucket") as caught:
        read_bytes(place / "x")
    assert caught.value.errno is not None
    for endpoint in ("not a url", "http://someone:hunter22@127.0.0.1:9", "http://127.0.0.1:99999"):
        with pytest.raises(InputError, match=r"check .*storage_options.* s3://bucket") as refused:
            read_bytes(locate("s3://bucket/x", {**options, "endpoint_url": endpoint}))
        assert "hunter22" not in whole_text(refused.value) + whole_text(caught.value)


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for use in (
        lambda: write_whole(locate(str(tmp_path / "file" / "x")), b""),
        lambda: create_exclusive(locate(str(tmp_path / "file" / "x")), b""),
        lambda: write_whole(locate(str(tmp_path / "folder")), b""),
        lambda: read_bytes(locate(str(tmp_path / "folder"))),
    ):
        with pytest.raises(InputError, match=f"check the path {tmp_path}"):
            use()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system to fill")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"this machine lets nobody mount a tmpfs: {mounted.stderr.decode()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_and_holds_no_half_file(small_disk: Path) -> None:
    place = locate(str(small_disk))
    write_whole(place / "old", b"old")
    for use in (
        lambda: write_whole(place / "old", b"x" * (2 << 20)),
        lambda: write_whole(place / "new", b"x" * (2 << 20)),
        lambda: create_exclusive(place / "new", b"x" * (2 << 20)),
    ):
        with pytest.raises(StorageError, match=rf"free some space .* the storage is full at {small_disk}") as caught:
            use()
        assert str(caught.value).startswith("free some space")
        assert pickle.loads(pickle.dumps(caught.value)).errno == caught.value.errno
    assert os.listdir(small_disk) == ["old"]
    assert read_bytes(place / "old") == b"old"


def test_a_disk_that_refuses_writes_is_named(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    file = locate(str(small_disk / "x"))
    for use in (lambda: write_whole(file, b""), lambda: create_exclusive(file, b"")):
        with pytest.raises(InputError, match=f"get permission for {file.url}: the system refuses it .Read-only"):
            use()


def test_redact_masks_secrets_and_nothing_else() -> None:
    config = {
        "source": {
            "path": ["s3://bucket/x", "https://me:pw@host/x?X-Amz-Signature=abc123&part=1"],
            "id": "key_column",
            "storage_options": {
                "key": "AKIA1",
                "secret": "s1",
                "token": None,
                "client_kwargs": {"aws_session_token": "t1", "region_name": "eu"},
                "sessionToken": "t2",
                "connection_string": "c1",
                "account-key": "a1",
            },
        },
        "embedder": {"max_tokens": 256, "batch_tokens": None, "end_token": "</s>", "tokens": "yes", "monkey": "m"},
        "passes": ({"password": "p1"}, 3.5, True, None),
    }
    masked = redact(config)
    assert masked == {
        "source": {
            "path": ["s3://bucket/x", "https://***@host/x?X-Amz-Signature=***&part=1"],
            "id": "key_column",
            "storage_options": {
                "key": "***",
                "secret": "***",
                "token": None,
                "client_kwargs": {"aws_session_token": "***", "region_name": "eu"},
                "sessionToken": "***",
                "connection_string": "***",
                "account-key": "***",
            },
        },
        "embedder": {"max_tokens": 256, "batch_tokens": None, "end_token": "</s>", "tokens": "yes", "monkey": "m"},
        "passes": ({"password": "***"}, 3.5, True, None),
    }
    assert config["source"]["storage_options"]["secret"] == "s1"  # type: ignore[index]  # the original stays


def test_a_password_with_an_at_sign_is_masked_whole() -> None:
    assert redact("https://me:p@ss:w@host/x") == "https://***@host/x"


@pytest.mark.parametrize("piece", ["?sig", "&key", "://:", "://a@", "&", "sig", ":", "@"])
def test_masking_takes_time_by_the_length_alone(piece: str) -> None:
    # Steps of a pattern cannot be counted; these lengths took hours where they took more than their length.
    text = "s3://b/" + piece * (1_000_000 // len(piece))
    assert isinstance(redact(text), str)
    assert isinstance(holds_secret(text), bool)


@pytest.mark.parametrize("kind", SERVERS)
def test_a_flat_listing_finds_what_a_walk_through_the_folders_finds(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    parts = ["a", "b", "_c", ".d", "a.txt", "e-f", "é", "[x]", "a0"]
    names = {"/".join(rng.choices(parts, k=rng.randint(1, 4))) + rng.choice([".json", ".csv"]) for _ in range(60)}
    place = a_place(kind, request, tmp_path, s3_additional_kwargs={"MaxKeys": 3})
    walked = locate(f"memory://{uuid.uuid4().hex}")
    for name in names:
        write_whole(place / name, b"1")
        write_whole(walked / name, b"1")
    pieces = ["*", "**", "a*", "_*", "?", "[ab]*", "*.txt", "*.csv", "a", ".*"]
    patterns = [["**"], ["*", "*"], *(rng.choices(pieces, k=rng.randint(1, 4)) for _ in range(25))]
    for pattern in patterns:
        glob = "/".join(pattern)
        expected = sorted(urls(iter_files(walked / glob), walked))
        assert urls(iter_files(place / glob), place) == expected, glob


def test_many_folders_are_listed_by_the_thousand(moto_server: S3Server) -> None:
    direct = locate(f"s3://{moto_server.make_bucket()}", moto_server.storage_options)
    names = [f"{folder:03}/{file}.txt" for folder in range(300) for file in range(4)]
    for name in [*names, *(f"_temporary/{i}" for i in range(30))]:
        write_whole(direct / name, b"1")
    proxy = FaultProxy(moto_server.endpoint_url, seed=0).start()
    try:
        place = Location(direct.url, {**direct.options, "endpoint_url": proxy.url})
        for glob in ("", "/*/*.txt", "/**/*.txt"):
            before = proxy.counts["passed"]
            assert urls(iter_files(Location(place.url + glob, place.options)), place) == names
            assert proxy.counts["passed"] - before <= 2 + 4, "two pages, and what asks whether it is a file or a folder"
    finally:
        proxy.stop()


def test_a_password_in_a_url_is_refused_or_becomes_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = "fsspec.implementations.ftp.FTPFileSystem._connect"
    monkeypatch.setattr(connect, lambda fs: setattr(fs, "ftp", io.BytesIO()))
    place = locate("ftp://me:CANARY-pass@127.0.0.1:1/x/y")
    assert place.url == "ftp://127.0.0.1:1/x/y"
    assert dict(place.options) == {"username": "me", "password": "CANARY-pass"}
    assert "CANARY" not in repr(place)
    with pytest.raises(InputError, match="give it in storage_options") as caught:
        locate("https://me:CANARY-pass@host/x")
    assert "CANARY" not in str(caught.value)


def test_a_cache_that_others_may_write_into_is_refused(tmp_path: Path) -> None:
    shared, link = tmp_path / "shared", tmp_path / "link"
    shared.mkdir()
    shared.chmod(0o777)
    (tmp_path / "own").mkdir(mode=0o700)
    link.symlink_to(tmp_path / "own")
    file = locate(f"memory://{uuid.uuid4().hex}/file")
    write_whole(file, b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    for folder in (shared, link):
        with pytest.raises(InputError, match="make it yours alone"):
            Cache.at(str(folder)).fetch(file, digest, 7)
        with pytest.raises(InputError, match="make it yours alone"):
            _ = Cache.at(str(folder)).scratch
    assert Cache.at(str(tmp_path / "new")).fetch(file, digest, 7).read_bytes() == b"content"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
