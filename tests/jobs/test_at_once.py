"""Two real processes at the same output on S3, of which one is killed at a random moment: what is published holds.

Each pair is tried `MOMENTS` times on one output whose source goes on changing. Slow: `make test-all`, or
EMBEDFLEET_KILLS=2 for a short look.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from operators.index import open_index
from operators.index.snapshot import index_numbers
from operators.storage import Location, locate
from operators.store.snapshots import check_files, read_snapshot, snapshot_numbers
from tests.jobs.running import ROOT, documents, write_config, write_jsonl
from tests.jobs.test_index import index_config
from tests.s3_servers import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

MOMENTS = int(os.environ.get("EMBEDFLEET_KILLS", "20"))
# Short, so that a process that was killed is soon taken for dead.
LEASE_SECONDS = 20
# With leases as short as that; what else the process does is what its user's does.
STARTER = (
    "import sys; from operators.storage import lease; lease.LEASE_SECONDS = float(sys.argv[1]); "
    "from jobs.command_line.main import main; sys.exit(main(sys.argv[2:]))"
)
HELD_UP = ("run again", "run embed again", "run index again")  # begins what a run says that others were in the way of
VACUUM = ("vacuum.grace_hours=0", "vacuum.keep_snapshots=1")


@dataclass(frozen=True)
class Place:
    """A source that changes, and the outputs made of it."""

    folder: Path
    embed: Path
    index: Path
    vectors: Location
    shards: Location

    def change(self, moment: int) -> None:
        """Some files of the source are replaced; some come back as they were, so that old fragments are theirs."""
        for i in range(3):
            version = (moment // (i + 1)) % 2
            write_jsonl(self.folder / "in" / f"{i}.jsonl", documents(60, start=1000 * i + 100 * version))
            os.utime(self.folder / "in" / f"{i}.jsonl", (1e9 + version, 1e9 + version))


@pytest.fixture
def place(rgw_server: S3Server, tmp_path: Path, tiny_model: Path) -> Place:
    """An output on S3 with an index, both finished once."""
    bucket, options = f"s3://{rgw_server.make_bucket()}", rgw_server.storage_options
    output = {"path": f"{bucket}/vectors", "storage_options": options}
    embed = write_config(
        tmp_path,
        tiny_model,
        source={"path": str(tmp_path / "in"), "rows_per_fragment": 20},
        output=output,
        verify={"sample_rows": 0},
        gates={"max_dropped_fraction": 1.0},
    )
    index = index_config(
        tmp_path,
        embeddings=f"{bucket}/vectors",
        storage_options=options,
        output={"path": f"{bucket}/index", "storage_options": options},
        spec="Flat",
        recall_target=0.5,
        recall={"queries": 10},
        shards={"rows": 60},
        compute={"cache_dir": str(tmp_path / "cache")},
    )
    made = Place(tmp_path, embed, index, locate(f"{bucket}/vectors", options), locate(f"{bucket}/index", options))
    made.change(0)
    finish("embed", embed)
    finish("index", index)
    return made


@pytest.mark.parametrize("pair", ["embed embed", "index index", "embed vacuum", "index vacuum"])
def test_one_of_two_is_killed(pair: str, place: Place) -> None:
    moments = random.Random(pair)
    names = pair.split()
    kills = 0
    for moment in range(1, MOMENTS + 1):
        place.change(moment)
        if "index" in names:
            finish("embed", place.embed)
        config = place.index if "index" in names else place.embed
        both = [start(name, config, *(VACUUM if name == "vacuum" else ())) for name in names]
        doomed = moments.randrange(2)
        time.sleep(moments.uniform(0, 2.5 if names[doomed] == "vacuum" else 9))
        kills += kill(both[doomed])
        for process in both:
            output, _ = process.communicate(timeout=600)
            told = output.strip().rpartition("\n")[2].removeprefix("error: ")
            assert process.returncode in (0, -signal.SIGKILL) or any(text in told for text in HELD_UP), output
        assert_all_published_open(place)
        finish("embed", place.embed)
        finish("index", place.index)
        assert_all_published_open(place)
        finish("verify", place.embed)
        finish("verify", place.shards.url, "storage_options=" + str(dict(place.shards.options)))
    print(f"{kills} of {MOMENTS} killed before their end ({pair})")
    assert kills >= min(MOMENTS, 3) - 1


def start(job: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a job with short leases."""
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(LEASE_SECONDS), job, *(str(argument) for argument in arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(job: str, *arguments: object) -> None:
    """A job in peace ends with 0."""
    process = start(job, *arguments)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def kill(process: subprocess.Popen[str]) -> bool:
    """Kill a job with all that it started; False where it was through already."""
    if process.poll() is not None:
        return False
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    for left in psutil.wait_procs(family, timeout=10)[1]:
        left.kill()
    return True


def assert_all_published_open(place: Place) -> None:
    """Every snapshot of both outputs opens, and all that it names is there."""
    for number in snapshot_numbers(place.vectors):
        check_files(place.vectors, read_snapshot(place.vectors, number).records)
    for number in index_numbers(place.shards):
        cache = str(place.folder / "cache")
        opened = open_index(place.shards.url, dict(place.shards.options), number, cache)
        found = opened.search(np.eye(1, opened.identity.dim, dtype=np.float32), 1)
        assert found.num_rows == 1
