"""Sets prepared on Ray: in parallel, once, reused without reading a source, on S3, and after processes died."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from jobs.command_line.config_file import check_config
from jobs.training.config import TrainConfig
from jobs.training.data import MissingSet, batch_plan, prepare_sets, prepare_units
from operators.corpus.listing import list_source
from operators.corpus.units import plan_units
from operators.errors import InputError
from operators.storage import iter_files, locate, write_whole
from operators.storage.cache import Cache
from operators.work.guard import PATIENCE, AttemptLedger
from tests.s3_servers import S3Server

pytestmark = pytest.mark.usefixtures("local_ray")


def lines(rows: list[dict[str, Any]]) -> bytes:
    """JSONL."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pairs(start: int, end: int) -> list[dict[str, Any]]:
    """Different pairs."""
    return [{"query": f"query {i}", "positive": f"positive {i}"} for i in range(start, end)]


TRIPLES = [{"query": f"q {i % 40}", "positive": f"p {i}", "negative": [f"n {i}", f"p {i}"]} for i in range(120)]


def write_sources(folder: Path) -> None:
    """Three files of pairs and one of triples."""
    folder.mkdir()
    for number in range(2):
        (folder / f"pairs-{number}.jsonl").write_bytes(lines(pairs(number * 500, number * 500 + 500)))
    (folder / "pairs-2.jsonl.gz").write_bytes(gzip.compress(lines([*pairs(1000, 1500), {"query": "lonely"}])))
    (folder / "triples.jsonl").write_bytes(lines(TRIPLES))


def config_of(source: str, output: str, options: dict[str, Any] | None = None, **sections: Any) -> TrainConfig:
    """Two sets."""
    shared = {"storage_options": options or {}}
    sets = [
        {"name": "pairs", "path": f"{source}/pairs-*", "kind": "pairs", "dev_fraction": 0.1, **shared},
        {"name": "triples", "path": f"{source}/triples.jsonl", "kind": "triples", **shared},
    ]
    values = {"model": "minilm", "sets": sets, "batch": {"size": 16}, "output": {"path": output, **shared}, **sections}
    return check_config(TrainConfig, values, [])


def everything(config: TrainConfig) -> list[list[dict[str, Any]]]:
    """All rows of the training splits."""
    cache = Cache.at(config.prepared.cache_dir)
    found = []
    for prepared in prepare_sets(config):
        rows = prepared.rows("train", cache)
        found.append(rows.take(np.arange(len(rows))).to_pylist())
    return found


def test_sets_are_prepared_once_and_then_not_read_again(tmp_path: Path) -> None:
    write_sources(tmp_path / "in")
    config = config_of(str(tmp_path / "in"), str(tmp_path / "run"))
    pairs_set, triples_set = prepare_sets(config)
    counts = pairs_set.manifest.counts
    assert (counts.read, counts.kept, counts.skipped) == (1501, 1500, {"null_text": 1})
    assert pairs_set.manifest.rows("train") + pairs_set.manifest.rows("dev") == 1500
    assert triples_set.manifest.counts.changed == {"negative_equals_positive_or_query": 120}
    before = everything(config)
    assert [row["documents"] for row in before[1]] == [[f"p {i}", f"n {i}"] for i in range(120)]
    queries = [row["query"] for row in before[0]]
    assert queries == sorted(queries, key=lambda query: int(query.split()[1]))  # as in the source

    for path in (tmp_path / "in").iterdir():  # the same listing, but nothing that would parse
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert everything(config) == before


@pytest.mark.slow
def test_a_half_written_set_is_written_again(tmp_path: Path) -> None:
    write_sources(tmp_path / "in")
    config = config_of(str(tmp_path / "in"), str(tmp_path / "run"))
    before = everything(config)
    folder = Path(prepare_sets(config)[0].folder.path)
    (folder / "manifest.json").unlink()
    next(folder.glob("train-*.arrow")).write_bytes(b"half")
    assert everything(config) == before


@pytest.mark.slow
def test_runs_share_the_folder_that_they_name(tmp_path: Path) -> None:
    write_sources(tmp_path / "in")
    shared = {"path": str(tmp_path / "shared")}
    for run in ("one", "two"):
        prepare_sets(config_of(str(tmp_path / "in"), str(tmp_path / run), prepared=shared))
    assert len(list((tmp_path / "shared").iterdir())) == 2
    assert not (tmp_path / "one").exists()


def test_the_plan_is_the_same_in_every_process_and_has_no_text_twice(tmp_path: Path) -> None:
    write_sources(tmp_path / "in")
    config = config_of(str(tmp_path / "in"), str(tmp_path / "run"))
    sets = prepare_sets(config)
    one, other = batch_plan(config, sets), batch_plan(config, prepare_sets(config))
    rows = [prepared.rows("train", Cache.at(None)) for prepared in sets]
    seen = [0, 0]
    for step in range(one.steps_per_epoch):
        batch = one.batch(step)
        assert batch.rows_B.tolist() == other.batch(step).rows_B.tolist()
        hashes = rows[batch.set_index].hashes(batch.rows_B)
        assert len(np.unique(hashes)) == hashes.size
        seen[batch.set_index] += len(batch.rows_B)
    assert seen == [len(part) for part in rows]


def test_a_set_that_ends_up_empty_is_refused(tmp_path: Path) -> None:
    write_sources(tmp_path / "in")
    (tmp_path / "in" / "triples.jsonl").write_bytes(lines([{**row, "negative": [row["positive"]]} for row in TRIPLES]))
    with pytest.raises(InputError, match=r"check the set 'triples', which is left without a row.*120 no_documents"):
        prepare_sets(config_of(str(tmp_path / "in"), str(tmp_path / "run")))


@pytest.mark.parametrize("name", ["moto_server", pytest.param("rgw_server", marks=pytest.mark.slow)])
def test_sets_on_s3_are_those_of_local_files(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(name)
    write_sources(tmp_path / "in")
    bucket = locate(f"s3://{server.make_bucket()}", server.storage_options)
    for path in (tmp_path / "in").iterdir():
        write_whole(bucket / "in" / path.name, path.read_bytes())
    cache = {"cache_dir": str(tmp_path / "cache")}
    there = config_of(f"{bucket.url}/in", f"{bucket.url}/run", server.storage_options, prepared=cache)
    assert everything(there) == everything(config_of(str(tmp_path / "in"), str(tmp_path / "run")))
    stored = [file.url for file in iter_files(bucket / "run")]
    assert sum(url.endswith("manifest.json") for url in stored) == 2
    for url in stored:
        content = locate(url, server.storage_options).fs.cat_file(url)
        assert server.secret.encode() not in content
    everything(there)  # fetched files are used again
    fetched = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(fetched) == sum(url.endswith(".arrow") and "/train-" in url for url in stored)


def test_a_misspelt_key_of_a_set_is_named_with_those_that_there_are() -> None:
    sets = [{"name": "a", "path": "x.jsonl", "kind": "pairs", "columns": {"quary": "q"}}]
    with pytest.raises(InputError, match=r"sets.0.columns.quary: unknown key.*expected one of: query, positive"):
        check_config(TrainConfig, {"sets": sets, "output": {"path": "run"}}, [])


@pytest.mark.slow
def test_a_file_that_kills_whoever_reads_it_stops_the_run(tmp_path: Path) -> None:
    write_sources(tmp_path / "in")
    config = config_of(str(tmp_path / "in"), str(tmp_path / "run"))
    ledger, chosen = AttemptLedger(), config.sets[1]
    folder, files = locate(str(tmp_path / "sets")), tuple(list_source(chosen.source()))
    (unit,) = plan_units(files, chosen.source(), (), 0, {})
    for _ in range(PATIENCE + 1):  # attempts that never ended
        ledger.begin(f"{folder.name}:{unit.digest}", 1)
    block = pa.table({"set": [0], "place": [0], "unit": [json.dumps(asdict(unit))]})
    with pytest.raises(InputError, match=r"look at .*triples.jsonl: 3 processes died while they read it"):
        list(prepare_units(block, [MissingSet(chosen, folder, files)], [pa.schema([])], 0, ledger))


@pytest.mark.slow
def test_workers_that_die_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        rows = pairs(number * 60_000, (number + 1) * 60_000)
        (tmp_path / "in" / f"pairs-{number}.jsonl.gz").write_bytes(gzip.compress(lines(rows), 1))
    (tmp_path / "in" / "triples.jsonl").write_bytes(lines(TRIPLES))
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                if any("prepare_units" in part for part in process.cmdline()[:1]):
                    process.kill()
                    killed.append(process.pid)
                    break
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    config = config_of(str(tmp_path / "in"), str(tmp_path / "run"))
    found = everything(config)
    killer.join()
    assert killed
    undisturbed = config_of(str(tmp_path / "in"), str(tmp_path / "other"))
    assert found == everything(undisturbed)
    counts = [prepared.manifest.counts for prepared in prepare_sets(config)]
    assert counts == [prepared.manifest.counts for prepared in prepare_sets(undisturbed)]
    assert counts[0].read == counts[0].kept == 360_000
