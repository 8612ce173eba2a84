"""Kill builders, nodes and drivers of the index job at random moments: no half shard is seen, none is built twice.

Slow: `make test-all`, or EMBEDFLEET_KILLS=3 for a short look.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from operators.index import open_index
from operators.index.snapshot import Settings, read_index
from operators.storage import locate
from tests.cluster.raylets import ADDRESS, two_raylets
from tests.jobs.running import ROOT, start_job
from tests.jobs.test_index import index_config
from tests.vector_datasets import Documents, clustered, write_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

MOMENTS = int(os.environ.get("EMBEDFLEET_KILLS", "20"))
COUNT, DIM = 120_000, 64
BUILDER = "ray::build"


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 120 fragments."""
    folder = tmp_path_factory.mktemp("kills") / "vectors"
    write_dataset(str(folder), [("a.jsonl", Documents.of(clustered(COUNT, DIM)))], rows_per_fragment=1000)
    return folder


@pytest.fixture
def config(vectors: Path, tmp_path: Path) -> Path:
    """A config whose run builds 60 shards."""
    return index_config(
        tmp_path,
        embeddings=str(vectors),
        spec="IVF64,SQ8",
        recall_target=0.5,
        shards={"rows": 2000},
        compute={"local_dir": str(tmp_path / "scratch")},
    )


def test_builders_killed_at_random_moments(config: Path, vectors: Path) -> None:
    moments = random.Random(1)
    process = start_job("index", config)
    kills = 0
    while process.poll() is None and kills < MOMENTS:
        time.sleep(moments.uniform(0.1, 1.0))
        # a builder has its name only while it builds, which takes less time than looking for it now and then would find
        while not (builders := _builders(process.pid)) and process.poll() is None:
            pass
        if builders:
            moments.choice(builders).kill()
            kills += 1
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output
    print(f"{kills} builders killed")
    assert kills >= min(MOMENTS, 5), output
    assert_sound(config, vectors)


def test_driver_killed_at_random_moments(config: Path, vectors: Path) -> None:
    moments = random.Random(2)
    index = config.parent / "index"
    kills = 0
    while kills < MOMENTS:
        before = _finished(index)
        process = start_job("index", config)
        while process.poll() is None and len(_finished(index)) == len(before):
            time.sleep(0.05)
        time.sleep(moments.uniform(0.0, 1.5))
        if process.poll() is not None:
            process.communicate()
            break
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        kills += 1
        process.communicate()
        for left in psutil.wait_procs(family, timeout=10)[1]:
            left.kill()
        after = _finished(index)
        assert {name: after[name] for name in before} == before, "a finished shard was built again"
        assert_every_visible_shard_is_whole(index)
    print(f"{kills} drivers killed")
    assert kills >= min(MOMENTS, 5)
    before = _finished(index)
    process = start_job("index", config)
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output
    assert {name: _finished(index)[name] for name in before} == before
    assert not list((config.parent / "scratch").iterdir()), "what killed builders left on disk is gone"
    assert_sound(config, vectors)


def test_node_killed_at_random_moments(config: Path, vectors: Path) -> None:
    moments = random.Random(3)
    with two_raylets() as cluster:
        process = cluster.start([sys.executable, "-m", "jobs", "index", str(config)], ROOT, {"RAY_ADDRESS": ADDRESS})
        kills = 0
        while process.poll() is None and kills < MOMENTS:
            time.sleep(moments.uniform(1.0, 4.0))
            if _finished(config.parent / "index"):
                cluster.replace_node(kills)
                kills += 1
                assert_every_visible_shard_is_whole(config.parent / "index")
        output, errors = process.communicate(timeout=1800)
        assert process.returncode == 0, output + errors
        print(f"{kills} nodes killed")
        assert kills >= 1
    assert_sound(config, vectors)


def _builders(driver: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(BUILDER):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _finished(index: Path) -> dict[str, int]:
    """Shards that can be seen, with the moment at which each was finished."""
    return {path.name: path.stat().st_mtime_ns for path in (index / "shards").glob("[!.]*.ids.parquet")}


def assert_every_visible_shard_is_whole(index: Path) -> None:
    for ids in (index / "shards").glob("[!.]*.ids.parquet"):
        record = json.loads(pq.ParquetFile(ids).metadata.metadata[b"embedfleet.shard"])
        content = (index / "shards" / f"{ids.name.removesuffix('.ids.parquet')}.faiss").read_bytes()
        assert hashlib.sha256(content).hexdigest() == record["sha256"]
        assert pq.read_table(ids).num_rows == record["rows"]


def assert_sound(config: Path, vectors: Path) -> None:
    """The index holds every vector and answers as one that was built in peace."""
    index = config.parent / "index"
    assert_every_visible_shard_is_whole(index)
    snapshot = read_index(locate(str(index)))
    assert snapshot.num_vectors == COUNT
    assert {path.name.split(".")[0] for path in (index / "shards").glob("*.ids.parquet")} == {
        shard.key for shard in snapshot.shards
    }
    peaceful = config.parent / "peaceful"
    peaceful.mkdir()
    (peaceful / "index").mkdir()
    (peaceful / "index" / "trained.faiss").write_bytes((index / "trained.faiss").read_bytes())
    other = index_config(peaceful, embeddings=str(vectors), spec="IVF64,SQ8", recall_target=0.5, shards={"rows": 2000})
    process = start_job("index", other)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    queries = clustered(200, DIM, seed=6)
    found, expected = (
        open_index(str(folder)).search(queries, 10, settings=Settings(nprobe=8))
        for folder in (index, peaceful / "index")
    )
    assert found["doc_id"].equals(expected["doc_id"])
    np.testing.assert_array_equal(found["score"].to_numpy(), expected["score"].to_numpy())
