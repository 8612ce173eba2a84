"""Building a shard: whole or not at all, the same whoever builds it, with an id map of any size."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from operators.errors import InputError
from operators.index import ids as ids_module
from operators.index.building import FragmentPart, ShardPlan, build_shard, finished_shard
from operators.index.ids import IdMap, IdsWriter, id_table
from operators.index.planning import Sharding, group_fragments, shard_rows
from operators.index.scratch import scratch_folder, sweep_scratch
from operators.index.snapshot import shard_file
from operators.index.spec import IndexSpec
from operators.index.trained import open_trained
from operators.storage import Location, delete
from operators.storage.cache import Cache
from operators.store.snapshots import latest_snapshot
from tests.index_building import build_setup, index_identity, train_on_all
from tests.jobs.running import ROOT
from tests.vector_datasets import KEEP, Documents, clustered, write_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Location:
    """3,000 vectors in 10 fragments."""
    write_dataset(str(tmp_path / "vectors"), [("a", Documents.of(clustered(3000, 32)))], rows_per_fragment=300)
    return Location(str(tmp_path / "vectors"))


def plan_of(dataset: Location, sha256: str) -> ShardPlan:
    return ShardPlan.of([FragmentPart(r) for r in latest_snapshot(dataset).records], sha256, KEEP.names)


def test_a_shard_without_its_id_map_is_no_shard(dataset: Location, tmp_path: Path) -> None:
    identity = index_identity(dataset, "IVF16,SQ8", "cosine")
    setup = build_setup(Location(str(tmp_path / "index")), dataset, identity)
    trained = train_on_all(setup, identity)
    plan = plan_of(dataset, trained.sha256)
    assert finished_shard(setup.index, plan.key) is None
    record = build_shard(plan, open_trained(setup.index, trained, identity.spec, Cache.at(None)), setup)
    assert finished_shard(setup.index, plan.key) == record.model_copy(update={"cpu_seconds": 0.0}), "but what it took"
    file = Path(shard_file(setup.index, record.key).url)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert finished_shard(setup.index, plan.key) is None, "half a file"
    delete(shard_file(setup.index, record.key, "ids.parquet"))
    file.write_bytes(content)
    assert finished_shard(setup.index, plan.key) is None, "as after a crash between the two files"
    again = build_shard(plan, open_trained(setup.index, trained, identity.spec, Cache.at(None)), setup)
    assert (again.sha256, again.rows) == (record.sha256, record.rows), "whoever builds it writes the same"
    assert again.files == record.files, "id map and all: nothing that is hashed was measured"


def test_a_full_disk_is_said_and_leaves_nothing(dataset: Location, tmp_path: Path) -> None:
    identity = index_identity(dataset, "Flat", "cosine")
    setup = build_setup(Location(str(tmp_path / "index")), dataset, identity)
    train_on_all(setup, identity)
    code = f"""
import resource, sys
from operators.index.building import build_shard
from operators.index.trained import open_trained, stored_trained
from operators.storage import Location
from operators.storage.cache import Cache
from tests.index_building import build_setup, index_identity
from tests.operators.index.test_building import plan_of
dataset, index = Location({dataset.url!r}), Location({str(tmp_path / "index")!r})
identity = index_identity(dataset, "Flat", "cosine")
trained = stored_trained(index, 1)
opened = open_trained(index, trained, identity.spec, Cache.at(None))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    build_shard(plan_of(dataset, trained.sha256), opened, build_setup(index, dataset, identity))
except OSError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "free some space" in done.stderr, done.stderr
    assert list((tmp_path / "index" / "shards").glob("*")) == [] if (tmp_path / "index" / "shards").exists() else True
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_what_a_killed_builder_left_is_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f"embedfleet-shard-{dead.pid}-abc"
    left.mkdir()
    (left / "shard.faiss").write_bytes(b"gigabytes")
    with scratch_folder(str(tmp_path)) as mine:
        sweep_scratch(str(tmp_path))
        assert not left.exists()
        assert Path(mine).exists()
    assert list(tmp_path.iterdir()) == []


def test_the_scratch_of_a_builder_that_lives_in_a_container_stays(tmp_path: Path) -> None:
    code = """
import sys
from operators.index.scratch import scratch_folder
with scratch_folder(sys.argv[1]) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().strip())
        assert str(other.pid) not in folder.name, "its number is another one there"
        sweep_scratch(str(tmp_path))
        assert folder.exists()
        other.kill()
        other.wait()
        sweep_scratch(str(tmp_path))
        assert not folder.exists()


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_an_id_map_in_memory_and_a_mapped_one_are_the_same(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ids_module, "_IN_MEMORY_BYTES", limit)
    monkeypatch.setattr(ids_module, "_BATCH_ROWS", 64)
    writer = IdsWriter(tmp_path / "ids.parquet", KEEP)
    for part in range(7):
        rows = np.arange(50, dtype=np.int32)
        table = pa.table(
            {
                "doc_id": [f"ключ-{part}-{i}" if i % 9 else f"{2**53 + i + part}" for i in range(50)],
                "chunk": pa.array(rows),
                "text_hash": pa.array([bytes([part, i] * 8) for i in range(50)], pa.binary(16)),
                "lang": ["en" if i % 2 else None for i in range(50)],
                "year": pa.array([2**53 + i for i in range(50)], pa.int64()),
            }
        )
        writer.add_table(id_table(f"fragment-{part}", rows, table, KEEP))
    writer.close()
    ids = IdMap(tmp_path / "ids.parquet", tmp_path / "cache", "key")
    assert ids.rows == 350
    wanted = np.array([349, 0, 128, 0, 63, 64, 300])
    taken = ids.take(wanted, ["doc_id", "chunk", "fragment", "year"]).to_pylist()
    assert [row["chunk"] for row in taken] == [49, 0, 28, 0, 13, 14, 0]
    assert [row["fragment"] for row in taken] == [f"fragment-{i // 50}" for i in wanted]
    assert taken[1]["doc_id"] == str(2**53), "no float in between"
    assert taken[0]["year"] == 2**53 + 49
    assert ids.find("ключ-3-7").tolist() == [157]
    assert ids.take(np.array([], np.int64), ["doc_id"]).num_rows == 0


def test_shards_are_even_runs_of_fragments(dataset: Location) -> None:
    parts = [FragmentPart(record) for record in latest_snapshot(dataset).records]
    for rows, sizes in ((3000, [3000]), (1000, [900, 600, 900, 600]), (300, [300] * 10), (2999, [1500, 1500])):
        groups = group_fragments(parts, rows)
        assert [part.record.key for group in groups for part in group] == [part.record.key for part in parts]
        found = [sum(part.num_rows for part in group) for group in groups]
        assert max(found) <= rows
        assert len(found) <= len(sizes)


def test_a_shard_that_does_not_fit_is_refused_with_the_number_to_set(dataset: Location) -> None:
    records = latest_snapshot(dataset).records
    spec = IndexSpec("IVF16,SQ8", "cosine", 4096, "")
    with pytest.raises(InputError, match=r"set shards.memory_bytes to ([\d,]+) or more") as refused:
        shard_rows(Sharding(rows=1_000_000, memory_bytes=1 << 30), spec, records, 1000)
    least = int(str(refused.value).split(" to ")[1].split(" or ")[0].replace(",", ""))
    assert shard_rows(Sharding(rows=1_000_000, memory_bytes=least), spec, records, 1000) == 1_000_000
    with pytest.raises(InputError):
        shard_rows(Sharding(rows=1_000_000, memory_bytes=least - 10_000), spec, records, 1000)
