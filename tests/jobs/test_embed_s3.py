"""The embed job from S3 to S3, on moto and on Ceph: vectors as from local files, and no secret left behind."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.storage import Location, iter_files, locate, read_bytes, write_whole
from operators.store.fragments import data_file, read_table
from operators.store.snapshots import latest_snapshot
from tests.fault_proxy import PASSING, FaultProxy
from tests.jobs.running import documents, run_job, start_job, write_config
from tests.s3_servers import S3Server

ROWS, ROWS_PER_FRAGMENT = 180, 20


@dataclass(frozen=True, slots=True)
class Corpus:
    """The same files in a local folder and in a bucket, and the vectors that a job makes of the local ones."""

    files: Mapping[str, bytes]
    vectors: pa.Table

    def upload(self, bucket: Location) -> None:
        """Put the files into `bucket`/in."""
        for name, content in self.files.items():
            write_whole(bucket / "in" / name, content)


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    """A proxy in front of it that does no harm yet."""
    running = FaultProxy(server.endpoint_url, seed=5).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, local_ray: None) -> Corpus:
    """A splittable file, one of row groups, and one that has to be streamed."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "in").mkdir()
    rows = documents(ROWS)
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    (folder / "in" / "a.jsonl").write_bytes(b"".join(lines[:60]))
    pq.write_table(pa.Table.from_pylist(rows[60:120]), folder / "in" / "b.parquet", row_group_size=30)
    (folder / "in" / "c.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[120:])))
    source = {"path": str(folder / "in"), "rows_per_fragment": ROWS_PER_FRAGMENT}
    assert run_job("embed", write_config(folder, tiny_model, source=source)) == 0
    files = {path.name: path.read_bytes() for path in (folder / "in").iterdir()}
    return Corpus(files, vectors_at(locate(str(folder / "vectors"))))


def s3_config(folder: Path, model: Path, bucket: Location, **source: Any) -> Path:
    """A config that reads `bucket`/in and writes `bucket`/vectors with the options that `bucket` has."""
    options = dict(bucket.options)
    return write_config(
        folder,
        model,
        source={
            "path": f"{bucket.url}/in",
            "rows_per_fragment": ROWS_PER_FRAGMENT,
            "storage_options": options,
            **source,
        },
        output={"path": f"{bucket.url}/vectors", "storage_options": options},
    )


def vectors_at(dataset: Location) -> pa.Table:
    """All vectors of the latest snapshot, by document, without the paths they came from."""
    tables = [read_table(data_file(dataset, record.key)) for record in latest_snapshot(dataset).records]
    return pa.concat_tables(tables).drop_columns("source_path").sort_by("doc_id")


def assert_same_vectors(dataset: Location, expected: pa.Table) -> None:
    """Every row as in `expected`; vectors up to rounding, all else exactly."""
    found = vectors_at(dataset)
    assert found.drop_columns("embedding").equals(expected.drop_columns("embedding"))
    ours, theirs = (np.stack(table["embedding"].to_numpy(zero_copy_only=False)) for table in (found, expected))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def assert_no_secret(server: S3Server, dataset: Location, log: str) -> None:
    """Neither key nor secret in any object (as stored or as decompressed), nor in what the jobs printed."""
    texts = {"the log": log}
    for info in iter_files(dataset):
        content = read_bytes(locate(info.url, dataset.options))
        texts[info.url] = content.decode("latin-1")
        if info.name.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(content))
            texts[info.url] += f"{table.schema.metadata} {table.to_pydict()}"
    assert {url.rsplit("/", 1)[-1] for url in texts} >= {"dataset.json", "config.yaml", "report.json", "report.html"}
    for secret in (server.key, server.secret):
        assert [where for where, text in texts.items() if secret in text] == []


def test_options_reach_the_workers_and_stay_there(
    rgw_server: S3Server, corpus: Corpus, tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bucket = locate(f"s3://{rgw_server.make_bucket()}", rgw_server.storage_options)
    corpus.upload(bucket)
    config = s3_config(tmp_path, tiny_model, bucket)
    assert run_job("embed", config) == 0
    assert_same_vectors(bucket / "vectors", corpus.vectors)
    assert run_job("verify", config) == 0
    assert run_job("embed", config) == 0
    log = "".join(capfd.readouterr())
    assert "nothing to do" in log
    write_whole(bucket / "in" / "a.jsonl", json.dumps({"id": "new", "text": "a new text"}).encode())
    before = latest_snapshot(bucket / "vectors").keys
    assert run_job("embed", config) == 3  # a third of all rows would leave
    assert latest_snapshot(bucket / "vectors").keys == before
    assert run_job("embed", config, "gates.max_dropped_fraction=1") == 0
    after = latest_snapshot(bucket / "vectors")
    assert len(after.keys - before) == 1
    assert len(before - after.keys) == 60 // ROWS_PER_FRAGMENT
    assert sum(record.rows for record in after.records) == ROWS - 60 + 1
    assert_no_secret(rgw_server, bucket / "vectors", log + "".join(capfd.readouterr()))


@pytest.mark.slow
def test_credentials_from_the_environment(
    rgw_server: S3Server,  # moto takes any credentials
    corpus: Corpus,
    tmp_path: Path,
    tiny_model: Path,
) -> None:
    bucket = locate(f"s3://{rgw_server.make_bucket()}", rgw_server.storage_options)
    corpus.upload(bucket)
    config = s3_config(tmp_path, tiny_model, Location(bucket.url))
    log = ""
    for job in ("embed", "verify"):
        process = start_job(job, config, "--debug", env=rgw_server.environment)
        log += process.communicate(timeout=250)[0]
        assert process.returncode == 0, log
    assert f"{ROWS} embedded + 0 rejected" in log
    assert_same_vectors(bucket / "vectors", corpus.vectors)
    assert_no_secret(rgw_server, bucket / "vectors", log)


@pytest.mark.slow
def test_a_twentieth_of_all_requests_may_fail(
    server: S3Server, proxy: FaultProxy, corpus: Corpus, tmp_path: Path, tiny_model: Path
) -> None:
    """Of every kind: 500, 503, hanging, reset before, in and after the answer (Done-when 5)."""
    proxy.hang_seconds = 5.0
    direct = locate(f"s3://{server.make_bucket()}", server.storage_options)
    corpus.upload(direct)
    config_kwargs = {"connect_timeout": 2, "read_timeout": 2}
    options = {**server.storage_options, "endpoint_url": proxy.url, "config_kwargs": config_kwargs}
    # Fragments of one row make so many requests that every kind of fault comes, but for a chance below 1e-4.
    config = s3_config(tmp_path, tiny_model, Location(direct.url, options), rows_per_fragment=1)
    proxy.rate = 0.05
    assert run_job("embed", config) == 0
    assert proxy.num_faults > 20, proxy.counts
    assert run_job("verify", config) == 0
    assert all(proxy.counts[fault] for fault in PASSING), proxy.counts
    proxy.rate = 0.0
    assert sum(record.rows for record in latest_snapshot(direct / "vectors").records) == ROWS
    assert_same_vectors(direct / "vectors", corpus.vectors)


@pytest.mark.parametrize("options", [{"secret": "a-wrong-secret"}, {"key": "a-wrong-key"}, {"anon": True}])
def test_refused_credentials_end_in_one_line_before_anything_is_written(
    rgw_server: S3Server,
    options: dict[str, Any],
    tmp_path: Path,
    tiny_model: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bucket = locate(f"s3://{rgw_server.make_bucket()}", rgw_server.storage_options)
    write_whole(bucket / "in" / "a.jsonl", b'{"id": "a", "text": "a text"}\n')
    refused = s3_config(tmp_path, tiny_model, Location(bucket.url, {**rgw_server.storage_options, **options}))
    assert run_job("embed", refused, "--debug") == 2
    told = "".join(capfd.readouterr())
    assert f"s3://{bucket.name}" in told
    assert "check the credentials" in told or "get access to" in told
    for secret in (rgw_server.key, rgw_server.secret, "a-wrong-secret", "a-wrong-key"):
        assert secret not in told
    assert [info.name for info in iter_files(bucket)] == ["a.jsonl"]


def test_a_storage_that_refuses_writes_is_named(
    server: S3Server,
    proxy: FaultProxy,
    tmp_path: Path,
    tiny_model: Path,
    capfd: pytest.CaptureFixture[str],
    local_ray: None,
) -> None:
    bucket = locate(f"s3://{server.make_bucket()}", {**server.storage_options, "endpoint_url": proxy.url})
    write_whole(bucket / "in" / "a.jsonl", b'{"id": "a", "text": "a text"}\n')
    proxy.rate, proxy.faults, proxy.methods = 1.0, ("forbidden",), frozenset({"PUT"})
    assert run_job("embed", s3_config(tmp_path, tiny_model, bucket)) == 2
    told = capfd.readouterr().err
    assert f"{bucket.url}/vectors/dataset.json" in told
    assert server.secret not in told
    assert [info.name for info in iter_files(bucket)] == ["a.jsonl"]
