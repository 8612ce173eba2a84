"""index, search and explain as their users run them, on a Ray of this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray

from operators.index import open_index
from operators.index.snapshot import IndexSnapshot, Settings, read_index
from operators.storage import locate
from tests.jobs.running import run_job
from tests.vector_datasets import Documents, clustered, write_dataset

DIM = 32


def index_config(folder: Path, **sections: Any) -> Path:
    """A config that indexes `folder/vectors` into `folder/index`."""
    config = {
        "embeddings": str(folder / "vectors"),
        "output": {"path": str(folder / "index")},
        "recall": {"queries": 100},
        **sections,
    }
    path = folder / "index.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def corpus(count: int = 4000, seed: int = 0) -> Documents:
    return Documents.of(clustered(count, DIM, seed))


def files_of(documents: Documents, files: int = 10) -> list[tuple[str, Documents]]:
    """The documents in files of equal size."""
    count = len(documents.ids)
    return [
        (f"part-{i}.jsonl", documents.take(slice(i * count // files, (i + 1) * count // files))) for i in range(files)
    ]


def snapshot_at(folder: Path) -> IndexSnapshot:
    return read_index(locate(str(folder / "index")))


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("by", ["document", "list"])
def test_an_index_is_built_measured_and_found_done_the_second_time(
    by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = corpus()
    write_dataset(str(tmp_path / "vectors"), files_of(documents), rows_per_fragment=200)
    shards = {"rows": 1000, "by": by}
    config = index_config(tmp_path, spec="IVF32,SQ8", recall_target=0.9, shards=shards)
    assert run_job("index", config) == 0
    assert "recall@10" in capsys.readouterr().out
    snapshot = snapshot_at(tmp_path)
    assert len(snapshot.shards) == 4
    assert snapshot.num_vectors == 4000
    assert snapshot.recall is not None
    assert snapshot.recall.is_met
    assert not list((tmp_path / "index").glob("scattered/*"))
    report = json.loads((tmp_path / "index" / "report.json").read_text())
    assert report["snapshot"]["recall"]["curve"]
    assert "<svg" in (tmp_path / "index" / "report.html").read_text()
    assert run_job("index", config) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert_measured_recall_is_true(tmp_path, documents, snapshot)


def assert_measured_recall_is_true(folder: Path, documents: Documents, snapshot: IndexSnapshot) -> None:
    """Count recall again with other queries and numpy alone."""
    assert snapshot.recall is not None
    queries = clustered(200, DIM, seed=5)
    exact = np.argsort(-queries @ documents.vectors.T, axis=1)[:, :10]
    found = open_index(str(folder / "index")).search(queries, 10)
    got = np.array([int(name[4:]) for name in found["doc_id"].to_pylist()]).reshape(-1, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(got, exact, strict=True)])
    assert recall == pytest.approx(snapshot.recall.chosen.recall, abs=0.04)


@pytest.mark.usefixtures("without_ray")
def test_a_target_that_the_codes_cannot_reach_is_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(str(tmp_path / "vectors"), files_of(corpus()), rows_per_fragment=500)
    config = index_config(tmp_path, spec="IVF16,PQ4x4fs", recall_target=0.95)
    assert run_job("index", config) == 3
    error = capsys.readouterr().err
    assert "the index is in place" in error
    assert snapshot_at(tmp_path).num_vectors == 4000
    assert run_job("index", config) == 3, "and so it is when there is nothing to do"


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    ("mode", "by"),
    [
        ("auto", "document"),
        ("rebuild", "document"),
        pytest.param("auto", "list", marks=pytest.mark.slow),
        pytest.param("rebuild", "list", marks=pytest.mark.slow),
    ],
)
def test_an_update_finds_what_a_fresh_index_finds(mode: str, by: str, tmp_path: Path) -> None:
    before = corpus()
    write_dataset(str(tmp_path / "vectors"), files_of(before), rows_per_fragment=200)
    config = index_config(
        tmp_path, spec="IVF32,Flat", recall_target=0.5, shards={"rows": 1000, "by": by}, update={"mode": mode}
    )
    assert run_job("index", config) == 0
    first = snapshot_at(tmp_path)
    after, deleted, changed = changed_corpus(before)
    write_dataset(str(tmp_path / "vectors"), after, rows_per_fragment=200)
    assert run_job("index", config) == 0
    second = snapshot_at(tmp_path)
    assert second.number == 2
    assert second.num_vectors == sum(len(d.ids) for _, d in after)
    kept = {s.key for s in first.shards} & {s.key for s in second.shards}
    if mode == "auto":
        assert len(kept) == 4, "all shards stay, a small one is added"
        assert second.shards[-1].rows == 40
    elif by == "document":
        assert len(kept) == 3, "the shards of unchanged files stay"
    index = open_index(str(tmp_path / "index"))
    fresh = {name: vector for _, d in after for name, vector in zip(d.ids, d.vectors, strict=True)}
    queries = np.concatenate([before.vectors[:50], clustered(50, DIM, seed=3), changed])
    found = index.search(queries, 10, settings=Settings(nprobe=32))
    assert not set(found["doc_id"].to_pylist()) & deleted
    exact = exact_scores(queries, np.stack(list(fresh.values())))
    np.testing.assert_allclose(found["score"].to_numpy().reshape(-1, 10), exact, atol=1e-5)
    ids = np.array(found["doc_id"].to_pylist()).reshape(-1, 10)
    for query, names, scores in zip(queries, ids, exact, strict=True):
        np.testing.assert_allclose([fresh[n] @ query for n in names], scores, atol=1e-5)
        assert len(set(names)) == 10, "no document twice"
    assert (ids[-len(changed) :, 0] == [f"doc-{i}" for i in range(0, 400, 10)]).all(), "changed documents are found"


def changed_corpus(before: Documents) -> tuple[list[tuple[str, Documents]], set[str], NDArray[np.float32]]:
    """Of the first file 40 documents changed, of the second 40 deleted; both files are written anew."""
    files = files_of(before)
    changed = clustered(40, DIM, seed=77)
    vectors, versions = files[0][1].vectors.copy(), files[0][1].versions.copy()
    vectors[::10], versions[::10] = changed, 1
    files[0] = (files[0][0], Documents(files[0][1].ids, vectors, versions))
    gone = np.zeros(400, bool)
    gone[::10] = True
    deleted = {name for name, is_gone in zip(files[1][1].ids, gone, strict=True) if is_gone}
    files[1] = (files[1][0], files[1][1].take(~gone))
    return files, deleted, changed


def exact_scores(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return -np.sort(-queries @ vectors.T, axis=1)[:, :10]


@pytest.mark.usefixtures("without_ray")
def test_a_file_that_changes_twice_is_patched_twice(tmp_path: Path) -> None:
    """Rows that outlived the first patch stand in a shard under the name of a fragment that was gone before."""
    before = corpus(2000)
    config = index_config(
        tmp_path, spec="IVF16,Flat", recall_target=0.5, shards={"rows": 500}, update={"mode": "patch"}
    )
    for step, alive in enumerate((np.ones(2000, bool), np.arange(2000) != 7, ~np.isin(np.arange(2000), (7, 8, 900)))):
        write_dataset(str(tmp_path / "vectors"), files_of(before.take(alive), 4), rows_per_fragment=200)
        assert run_job("index", config) == 0
        snapshot = snapshot_at(tmp_path)
        assert snapshot.number == step + 1
        assert snapshot.num_vectors == alive.sum()
        found = open_index(str(tmp_path / "index")).search(before.vectors, 2, settings=Settings(nprobe=16))
        names = np.array(found["doc_id"].to_pylist()).reshape(-1, 2)
        assert (names[alive, 0] == np.array(before.ids)[alive]).all()
        assert (names[:, 0] != names[:, 1]).all(), "no document twice"
        assert not set(names.flat) & set(np.array(before.ids)[~alive])


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_ten_updates_in_a_row_lose_nothing(tmp_path: Path) -> None:
    """Patches pile up, are put together by a rebuild, and the index stays the embeddings."""
    rng = np.random.default_rng(1)
    documents = corpus(2000)
    alive = np.ones(2000, bool)
    config = index_config(tmp_path, spec="IVF16,Flat", recall_target=0.5, shards={"rows": 500})
    modes = set()
    for step in range(10):
        files = [(p, d) for p, d in files_of(documents.take(alive), 5) if len(d.ids)]
        write_dataset(str(tmp_path / "vectors"), files, rows_per_fragment=200)
        assert run_job("index", config) == 0
        snapshot = snapshot_at(tmp_path)
        assert snapshot.number == step + 1
        assert snapshot.num_vectors == alive.sum()
        modes.add(any(s.deletions or s.is_patch for s in snapshot.shards))
        found = open_index(str(tmp_path / "index")).search(documents.vectors, 1, settings=Settings(nprobe=16))
        names = np.array(found["doc_id"].to_pylist())
        assert (names[alive] == np.array(documents.ids)[alive]).all()
        assert not set(names) & set(np.array(documents.ids)[~alive])
        rows = rng.choice(np.flatnonzero(alive), 40, replace=False)
        alive[rows[:20]] = False
        documents.vectors[rows[20:]] = clustered(20, DIM, seed=100 + step)
        documents.versions[rows[20:]] += 1
    assert modes == {True, False}, "some snapshots were patches, some were rebuilt"


@pytest.mark.usefixtures("without_ray")
def test_drift_trains_anew_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    near = corpus(2000)
    write_dataset(str(tmp_path / "vectors"), [("a.jsonl", near)], rows_per_fragment=500)
    config = index_config(tmp_path, spec="IVF32,SQ8", recall_target=0.5)
    assert run_job("index", config) == 0
    other = np.random.default_rng(4).standard_normal((3000, DIM)).astype(np.float32)
    far = Documents(
        [f"far-{i}" for i in range(3000)],
        other / np.linalg.norm(other, axis=1, keepdims=True),
        np.zeros(3000, np.int64),
    )
    write_dataset(str(tmp_path / "vectors"), [("a.jsonl", near), ("b.jsonl", far)], rows_per_fragment=500)
    with caplog.at_level("INFO"):
        assert run_job("index", config) == 0
    assert "training anew" in caplog.text
    snapshot = snapshot_at(tmp_path)
    assert snapshot.trained.path == "trained-2.faiss"
    assert {s.trained_sha256 for s in snapshot.shards} == {snapshot.trained.sha256}
    assert snapshot.num_vectors == 5000
    assert read_index(locate(str(tmp_path / "index")), 1).trained.path == "trained.faiss"
    assert open_index(str(tmp_path / "index"), snapshot=1).search(near.vectors[:5], 1).num_rows == 5
    with caplog.at_level("INFO"):
        assert run_job("index", config) == 0, "the next run has nothing to do"
    assert snapshot_at(tmp_path).number == 2


@pytest.mark.usefixtures("local_ray")
def test_ready_vectors_are_searched_in_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = corpus()
    write_dataset(str(tmp_path / "vectors"), files_of(documents), rows_per_fragment=500)
    spec = "IVF32,PQ16x4fs,Refine(SQ8)"
    queries = clustered(3000, DIM, seed=9)
    column = pa.FixedSizeListArray.from_arrays(pa.array(queries.reshape(-1)), DIM)
    ids = pa.array(np.arange(3000))
    pq.write_table(pa.table({"qid": ids, "embedding": column}), tmp_path / "queries.parquet", row_group_size=700)
    real = {"path": str(tmp_path / "queries.parquet"), "id": "qid", "vector": "embedding"}
    config = index_config(tmp_path, spec=spec, recall_target=0.5, shards={"rows": 1500}, queries=real)
    assert run_job("index", config) == 0
    recall = snapshot_at(tmp_path).recall
    assert recall is not None
    assert recall.source.startswith("queries of")
    search = tmp_path / "search.yaml"
    output = tmp_path / "results.parquet"
    search.write_text(
        yaml.safe_dump(
            {
                "index": str(tmp_path / "index"),
                "queries": real,
                "output": {"path": str(output)},
                "k": 5,
                "filter": "lang == 'de'",
                "columns": ["lang", "year"],
            }
        )
    )
    assert run_job("search", search) == 0
    assert "3,000 queries" in capsys.readouterr().out
    table = pq.read_table(output)
    assert table.column_names == ["query_id", "rank", "doc_id", "chunk", "score", "lang", "year"]
    assert table["query_id"].to_pylist() == [str(i) for i in range(3000) for _ in range(5)]
    assert table["rank"].to_pylist() == [1, 2, 3, 4, 5] * 3000
    assert set(table["lang"].to_pylist()) == {"de"}
    alone = open_index(str(tmp_path / "index")).search(queries, 5, filter="lang == 'de'")
    np.testing.assert_allclose(table["score"].to_numpy(), alone["score"].to_numpy(), atol=1e-5)
    assert list(tmp_path.glob("results.parquet.*")) == [], "the parts are gone"


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_binary_and_int8_and_half_vectors(tmp_path: Path) -> None:
    documents = corpus(3000)
    for dtype, spec in (("binary", "BIVF16"), ("binary", "BFlat"), ("int8", "IVF16,SQ8"), ("float16", "HNSW16")):
        folder = tmp_path / f"{dtype}-{spec}"
        folder.mkdir()
        write_dataset(str(folder / "vectors"), files_of(documents), dtype=dtype, rows_per_fragment=500)  # type: ignore[arg-type]
        assert run_job("index", index_config(folder, spec=spec, recall_target=0.9, shards={"rows": 1600})) == 0
        index = open_index(str(folder / "index"))
        queries = documents.vectors[:20]
        asked = np.packbits(queries > 0, axis=1) if dtype == "binary" else queries
        found = index.search(asked, 3, filter="year >= 2000 and lang != 'fr'")
        assert set(found.filter(pa.array(np.asarray(found["rank"]) == 1))["query"].to_pylist()) == set(range(20))
        best = dict(zip(found["query"].to_pylist()[::3], found["doc_id"].to_pylist()[::3], strict=True))
        own = sum(best[i] == f"doc-{i}" for i in range(20) if i % 4 != 2)
        assert own >= 13, f"{dtype} {spec}: {own} of 15 documents find themselves"


@pytest.mark.usefixtures("without_ray")
def test_more_results_than_vectors_are_all_vectors(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "vectors"), [("a.jsonl", corpus(30))])
    assert run_job("index", index_config(tmp_path)) == 0
    found = open_index(str(tmp_path / "index")).search(clustered(3, DIM, seed=2), 100)
    assert found.num_rows == 90
    assert sorted(found["doc_id"].to_pylist()[:30]) == sorted(f"doc-{i}" for i in range(30))


@pytest.mark.usefixtures("without_ray")
def test_vacuum_removes_what_no_kept_snapshot_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = corpus()
    write_dataset(str(tmp_path / "vectors"), files_of(before), rows_per_fragment=200)
    config = index_config(
        tmp_path, spec="IVF16,Flat", recall_target=0.5, shards={"rows": 1000}, update={"mode": "rebuild"}
    )
    assert run_job("index", config) == 0
    write_dataset(str(tmp_path / "vectors"), changed_corpus(before)[0], rows_per_fragment=200)
    assert run_job("index", config) == 0
    files = {path.name for path in (tmp_path / "index").rglob("*") if path.is_file()}
    assert run_job("vacuum", config) == 0
    assert {path.name for path in (tmp_path / "index").rglob("*") if path.is_file()} == files, "all is young or needed"
    assert run_job("vacuum", config, "vacuum.grace_hours=0", "vacuum.keep_snapshots=1") == 0
    assert "removed 3 files" in capsys.readouterr().out, "codes, id map and neighbours of one shard"
    found = open_index(str(tmp_path / "index")).search(before.vectors[900:999], 1, settings=Settings(nprobe=16))
    assert found["doc_id"].to_pylist() == [f"doc-{i}" for i in range(900, 999)]
    assert run_job("index", config) == 0
    assert "nothing to do" in capsys.readouterr().out
