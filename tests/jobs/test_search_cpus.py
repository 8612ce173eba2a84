"""A batch search on a machine of two CPUs, where its workers and Ray Data compete for the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.running import start_job
from tests.vector_datasets import Documents, clustered, write_dataset

DIM = 16


@pytest.mark.slow
def test_two_cpus_are_enough(tmp_path: Path) -> None:
    documents = Documents.of(clustered(2000, DIM, 0))
    half = [documents.take(slice(0, 1000)), documents.take(slice(1000, 2000))]
    write_dataset(
        str(tmp_path / "vectors"), [(f"part-{i}", part) for i, part in enumerate(half)], rows_per_fragment=250
    )
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(documents.vectors.reshape(-1)), DIM)
    pq.write_table(pa.table({"qid": pa.array(documents.ids), "v": vectors}), tmp_path / "queries.parquet")
    configs = {
        "index": f"embeddings: {tmp_path}/vectors\noutput: {{path: {tmp_path}/index}}\n"
        "spec: Flat\nshards: {rows: 500}\n",
        "search": f"index: {tmp_path}/index\nqueries: {{path: {tmp_path}/queries.parquet, id: qid, vector: v}}\n"
        f"output: {{path: {tmp_path}/found.parquet}}\nk: 1\n",
    }
    for job, text in configs.items():
        (tmp_path / f"{job}.yaml").write_text(text)
        process = start_job(job, tmp_path / f"{job}.yaml", "compute.local_cpus=2")
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output[-2000:]
    found = pq.read_table(tmp_path / "found.parquet")
    assert found["doc_id"].to_pylist() == documents.ids
    assert np.allclose(found["score"].to_numpy(), 1.0, atol=1e-3)
