"""A small index is built without Ray, file by file the one that is built on it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.embedding import small
from jobs.index import Config
from jobs.indexing.small import is_small
from jobs.indexing.source import open_embeddings
from operators.index import open_index
from operators.index.snapshot import Settings, read_index
from operators.index.verification import verify_index
from operators.storage import locate
from tests.jobs.running import run_job
from tests.jobs.test_in_process import run_alone
from tests.jobs.test_index import DIM, changed_corpus, corpus, files_of, index_config
from tests.vector_datasets import Documents, clustered, write_dataset

# Of a snapshot; all else follows from the vectors and the config. An id map says how long its shard took.
TIMES = {"created", "cpu_seconds", "cpu_ms", "ids_bytes", "ids_sha256"}


def contents(folder: Path) -> dict[str, str]:
    """The files of an index that searches read, by the hash of what they hold; of tables, by their rows."""
    hashes = {}
    for path in sorted((folder / "index").rglob("*")):
        if path.name.endswith(".ids.parquet"):
            hashes[path.name] = str(pq.read_table(path).to_pydict())
        elif path.is_file() and path.suffix in {".faiss", ".npz", ".npy", ".parquet", ".bin"}:
            hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def lasting(value: Any) -> Any:
    """A snapshot without what the clock and the folder say."""
    if isinstance(value, dict):
        return {name: lasting(one) for name, one in value.items() if name not in TIMES}
    return [lasting(one) for one in value] if isinstance(value, list | tuple) else value


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("spec", "by", "dtype"),
    [
        ("auto", "document", "float32"),
        ("IVF32,SQ8", "document", "float32"),
        ("IVF32,PQ16x4fs,Refine(SQ8)", "list", "float32"),
        ("BIVF16", "document", "binary"),
    ],
)
def test_it_builds_what_ray_builds(
    spec: str, by: str, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start, and as a change of it."""
    before = corpus()
    for documents in (files_of(before), changed_corpus(before)[0]):
        write_dataset(str(tmp_path / "vectors"), documents, dtype=dtype, rows_per_fragment=400)
        found, snapshots, files = [], [], []
        for name in ("ray", "here"):
            (tmp_path / name).mkdir(exist_ok=True)
            settings = {"spec": spec, "recall_target": 0.5, "shards": {"rows": 2100, "by": by}}
            train = {"cpus": 1}  # sums of several threads are rounded in another order each time
            config = index_config(tmp_path / name, embeddings=str(tmp_path / "vectors"), train=train, **settings)
            monkeypatch.setattr(small, "_has_ray", lambda name=name: name == "ray")
            assert run_job("index", config) == 0
            index = locate(str(tmp_path / name / "index"))
            snapshot = read_index(index)
            assert list(verify_index(index, snapshot, locate(str(tmp_path / "vectors")), None)) == []
            queries = clustered(50, DIM, seed=8)
            asked = np.packbits(queries > 0, axis=1) if dtype == "binary" else queries
            found.append(open_index(index.url).search(asked, 10, settings=Settings(nprobe=8, k_factor=4)))
            snapshots.append(lasting(snapshot.model_dump(mode="json")))
            files.append(contents(tmp_path / name))
        assert files[0] == files[1]
        assert found[0].equals(found[1])
        curves = [measured(snapshot.pop("recall")) for snapshot in snapshots]
        both = curves[0].keys() & curves[1].keys()  # how far a curve goes follows from the times of its points
        assert both
        assert all(curves[0][settings] == curves[1][settings] for settings in both)
        assert snapshots[0] == snapshots[1]


def measured(recall: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The points of a curve by their settings."""
    return {str(point["settings"]): point for point in recall["curve"]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"shards": {"rows": 1000}}, True),
        ({"shards": {"rows": 499}}, False),
        ({"compute": {"gpus_per_builder": 1}}, False),
        ({"train": {"gpus": 1}}, False),
        ({"output": {"path": "s3://bucket/index"}}, False),
    ],
)
def test_what_is_small(
    changes: dict[str, Any], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It follows from the vectors and what the config asks for."""
    monkeypatch.setattr(small, "_has_ray", lambda: False)
    write_dataset(str(tmp_path / "vectors"), files_of(corpus()), rows_per_fragment=400)
    config = Config.model_validate(
        {"embeddings": str(tmp_path / "vectors"), "output": {"path": str(tmp_path / "index")}, **changes}
    )
    index, source = locate(config.output.path), open_embeddings(config)
    rows = config.shards.rows or 4000
    assert is_small(config, source, index, rows, None) is expected
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    assert not is_small(config, source, index, rows, None)


def test_many_bytes_or_fragments_are_for_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither 65 MB of vectors nor 600 fragments."""
    monkeypatch.setattr(small, "_has_ray", lambda: False)
    for rows, dim, per_fragment in ((4250, 4096, 4250), (600, DIM, 1)):
        folder = tmp_path / str(rows)
        vectors = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
        write_dataset(str(folder / "vectors"), [("a.jsonl", Documents.of(vectors))], rows_per_fragment=per_fragment)
        config = Config.model_validate(
            {"embeddings": str(folder / "vectors"), "output": {"path": str(folder / "index")}}
        )
        assert not is_small(config, open_embeddings(config), locate(config.output.path), rows, None)


def test_it_imports_no_ray(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "vectors"), files_of(corpus()), rows_per_fragment=400)
    code, output, imported = run_alone("index", index_config(tmp_path))
    assert (code, imported) == (0, set()), output
    assert read_index(locate(str(tmp_path / "index"))).num_vectors == 4000
    code, output, _ = run_alone("index", index_config(tmp_path))
    assert code == 0
    assert "nothing to do" in output
