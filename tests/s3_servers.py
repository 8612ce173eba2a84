"""Real S3 to test against, each started once a session: moto (a simulation in Python) and Ceph's RADOS Gateway.

The two differ where it matters, in conditional writes and in how they refuse, so tests take both. Ceph comes with the
system, not with pip: `apt-get install --no-install-recommends radosgw ceph-mon ceph-osd`; without it its tests skip.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

KEY, SECRET = "embedfleet-test-key", "embedfleet/test+secret=1234567890"
CEPH_PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "monmaptool")
_bucket_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where an S3 answers, and as whom to ask it."""

    endpoint_url: str
    key: str = KEY
    secret: str = SECRET

    @property
    def storage_options(self) -> dict[str, Any]:
        """What a config's storage_options hold to reach it."""
        return {"key": self.key, "secret": self.secret, "endpoint_url": self.endpoint_url}

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables to reach it without storage_options."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # pyarrow 26 sends uploads without a length otherwise, which RGW 16.2 refuses (411); s3fs does not need it.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }

    def make_bucket(self) -> str:
        """A new, empty bucket's name."""
        name = f"bucket-{next(_bucket_numbers)}-{uuid.uuid4().hex[:8]}"
        fsspec.filesystem("s3", **self.storage_options).mkdir(name)
        return name


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """A moto S3 server in a process of its own; it takes any credentials."""
    pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[s3]' flask flask-cors")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _process(command, Path(os.devnull)) as process:
        yield S3Server(_answering(f"http://127.0.0.1:{port}", process))


@pytest.fixture(scope="session")
def rgw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A RADOS Gateway with a monitor and a store in memory of its own; it checks every signature."""
    missing = [program for program in CEPH_PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"Ceph is not installed ({', '.join(missing)} missing): apt-get install radosgw ceph-mon ceph-osd")
    with rados_gateway(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@contextmanager
def rados_gateway(folder: Path) -> Iterator[S3Server]:
    """One monitor, one OSD in memory, one gateway, all on 127.0.0.1 and without authentication among themselves."""
    port, monitor_port = free_port(), free_port()
    config = folder / "ceph.conf"
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    config.write_text(_CEPH_CONFIG.format(fsid=fsid, folder=folder, port=port, monitor_port=monitor_port))
    for name in ("mon", "osd", "run"):
        (folder / name).mkdir()
    ceph = ["-c", str(config)]

    def run(*command: str) -> None:
        done = subprocess.run([*command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command[0]} failed: {done.stderr[-2000:]}"

    def serve(*command: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        return _process([*command, *ceph, "-f"], folder / f"{command[0]}.out")

    address = f"[v2:127.0.0.1:{monitor_port}]"
    run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(folder / "monmap"))
    run("ceph-mon", *ceph, "-i", "a", "--mkfs", "--monmap", str(folder / "monmap"))
    with ExitStack() as processes:
        processes.enter_context(serve("ceph-mon", "-i", "a"))
        run("ceph", *ceph, "osd", "new", osd, "0")
        run("ceph-osd", *ceph, "-i", "0", "--mkfs", "--osd-uuid", osd)
        processes.enter_context(serve("ceph-osd", "-i", "0"))
        who = ["--uid=test", "--display-name=test", f"--access-key={KEY}", f"--secret-key={SECRET}"]
        run("radosgw-admin", *ceph, "-n", "client.rgw", "user", "create", *who)
        gateway = processes.enter_context(serve("radosgw", "-n", "client.rgw"))
        yield S3Server(_answering(f"http://127.0.0.1:{port}", gateway))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened at a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def _process(command: Sequence[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    # In a session of its own, so that a Ctrl-C at pytest does not reach it before the tests are through with it; and
    # it dies with pytest, should that be killed.
    bound = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    with output.open("ab") as log:
        process = subprocess.Popen(
            [*bound, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _answering(url: str, process: subprocess.Popen[bytes], patience_seconds: float = 60.0) -> str:
    """The url, once it answers HTTP."""
    end = time.monotonic() + patience_seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"the server at {url} ended with code {process.returncode}"
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError as answer:
            answer.close()
            return url
        except OSError:
            time.sleep(0.1)
        else:
            return url
    raise AssertionError(f"nothing answers at {url} after {patience_seconds:.0f} s")


_CEPH_CONFIG = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{monitor_port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
log_file = {folder}/$name.log
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
ms_mon_client_mode = crc
rgw_data = {folder}
rgw_thread_pool_size = 64
rgw_run_sync_thread = false
"""
