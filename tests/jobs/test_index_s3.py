"""index and search from S3 to S3, on moto and on Ceph: the same answers as from local files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from operators.index import open_index
from operators.index.snapshot import Settings, read_index
from operators.storage import locate, read_bytes
from tests.jobs.running import run_job
from tests.s3_servers import S3Server
from tests.vector_datasets import Documents, clustered, write_dataset

DIM = 32


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", ["moto_server", pytest.param("rgw_server", marks=pytest.mark.slow)])
def test_an_index_on_s3_is_built_updated_and_searched(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: S3Server = request.getfixturevalue(name)
    bucket = f"s3://{server.make_bucket()}"
    documents = Documents.of(clustered(3000, DIM))
    files = [(f"{i}.jsonl", documents.take(slice(i * 500, (i + 1) * 500))) for i in range(6)]
    write_dataset(str(tmp_path / "vectors"), files, rows_per_fragment=250)
    copy_to(tmp_path / "vectors", f"{bucket}/vectors", server)
    here = config(tmp_path / "here.yaml", str(tmp_path / "vectors"), str(tmp_path / "index"), {})
    there = config(tmp_path / "there.yaml", f"{bucket}/vectors", f"{bucket}/index", server.storage_options)
    for path in (here, there):
        assert run_job("index", path) == 0
    queries = clustered(100, DIM, seed=5)
    assert_same_answers(tmp_path, bucket, server, queries)

    files[0] = (files[0][0], documents.take(slice(50, 500)))
    write_dataset(str(tmp_path / "vectors"), files, rows_per_fragment=250)
    copy_to(tmp_path / "vectors", f"{bucket}/vectors", server)
    for path in (here, there):
        assert run_job("index", path) == 0
    assert read_index(locate(f"{bucket}/index", server.storage_options)).num_vectors == 2950
    assert_same_answers(tmp_path, bucket, server, queries)

    column = pa.FixedSizeListArray.from_arrays(pa.array(queries.reshape(-1)), DIM)
    pq.write_table(pa.table({"qid": pa.array(range(100)), "v": column}), tmp_path / "queries.parquet")
    arguments = [
        f"queries={{path: {tmp_path}/queries.parquet, id: qid, vector: v}}",
        f"output={{path: '{bucket}/results.parquet', storage_options: {server.storage_options}}}",
        f"storage_options={server.storage_options}",
    ]
    assert run_job("search", f"{bucket}/index", *arguments) == 0
    stored = read_bytes(locate(f"{bucket}/results.parquet", server.storage_options))
    table = pq.read_table(pa.BufferReader(stored))
    assert table.num_rows == 1000
    leftovers = fsspec.filesystem("s3", **server.storage_options).glob(f"{bucket}/results.parquet.parts/**")
    assert leftovers == []
    for key in fsspec.filesystem("s3", **server.storage_options).find(f"{bucket}/index"):
        if key.endswith((".json", ".html")):
            content = read_bytes(locate(f"s3://{key}", server.storage_options))
            assert server.secret.encode() not in content


def copy_to(folder: Path, target: str, server: S3Server) -> None:
    """Put a local dataset into a bucket."""
    fs = fsspec.filesystem("s3", **server.storage_options)
    for file in folder.rglob("*"):
        if file.is_file():
            fs.put_file(str(file), f"{target}/{file.relative_to(folder)}")


def config(path: Path, embeddings: str, output: str, options: dict[str, Any]) -> Path:
    sections = {
        "embeddings": embeddings,
        "storage_options": options,
        "output": {"path": output, "storage_options": options},
        "spec": "IVF16,SQ8",
        "recall_target": 0.5,
        "recall": {"queries": 50},
        "shards": {"rows": 1000},
        "compute": {"cache_dir": str(path.parent / "cache")},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


def assert_same_answers(folder: Path, bucket: str, server: S3Server, queries: Any) -> None:
    cache = str(folder / "cache")
    local = open_index(str(folder / "index"))
    remote = open_index(f"{bucket}/index", server.storage_options, cache=cache)
    found, expected = (
        index.search(queries, 10, filter="lang != 'de'", columns=["lang"], settings=Settings(nprobe=4))
        for index in (remote, local)
    )
    assert found["doc_id"].equals(expected["doc_id"])
    assert found["lang"].equals(expected["lang"])
    np.testing.assert_allclose(found["score"].to_numpy(), expected["score"].to_numpy(), atol=1e-6)
    assert list(Path(cache).rglob("*.partial")) == []
