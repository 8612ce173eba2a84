"""What index, search and explain refuse: exit code 2, and a first line that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.running import run_job, unseen_ray
from tests.jobs.test_index import corpus, files_of, index_config
from tests.vector_datasets import Documents, write_dataset


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vectors and an index of them in two shards."""
    folder = tmp_path_factory.mktemp("built")
    write_dataset(str(folder / "vectors"), files_of(corpus(2000)), rows_per_fragment=200)
    config = index_config(folder, spec="IVF16,SQ8", recall_target=0.5, shards={"rows": 1000})
    with unseen_ray():
        assert run_job("index", config) == 0
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(built / "vectors", tmp_path / "vectors")
    shutil.copytree(built / "index", tmp_path / "index")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    assert run_job(*arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error.splitlines()[0]


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"spec": "IVF16,Foo"}, "mend spec 'IVF16,Foo'"),
        ({"spec": "IDMap,Flat"}, "leave IDMap"),
        ({"spec": "BIVF16"}, "mend spec"),
        ({"metric": "hamming"}, "set metric: cosine"),
        ({"snapshot": 7}, "choose one of the snapshots [1]"),
        ({"keep": ["color"]}, "no column 'color'"),
        ({"embeddings": "/nowhere"}, "run embed first"),
        ({"bytes_per_vector": 3.0}, "raise bytes_per_vector"),
        ({"shards": {"rows": 100_000_000}}, "set shards.memory_bytes to"),
        ({"recall_target": 2}, "recall_target:"),
        ({"queries": {"path": "/nowhere.jsonl"}}, "/nowhere.jsonl"),
    ],
)
def test_a_config_that_cannot_be(
    sections: dict[str, Any], told: str, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vectors").symlink_to(built / "vectors")
    assert told in refused(capsys, "index", index_config(tmp_path, **sections))
    assert not (tmp_path / "index").exists()


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"spec": "IVF4096,SQ8"}, "choose at most"),
        ({"spec": "Flat", "shards": {"by": "list"}}, "set shards.by: document"),
        ({"train": {"gpus": 0}, "spec": "IVF16,PQ5"}, "mend spec"),
    ],
)
def test_a_spec_that_does_not_fit_the_vectors(
    sections: dict[str, Any], told: str, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vectors").symlink_to(built / "vectors")
    assert told in refused(capsys, "index", index_config(tmp_path, **sections))
    if sections["spec"] == "IVF4096,SQ8":
        mended = index_config(tmp_path, spec="IVF16,SQ8", recall_target=0.5)
        assert run_job("index", mended) == 0, "the output is still free for a spec that works"


def test_an_output_that_belongs_to_others(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = index_config(tmp_path, embeddings=str(built / "vectors"), spec="IVF8,SQ8")
    shutil.copytree(built / "index", tmp_path / "index")
    assert "with requested IVF16,SQ8" in refused(capsys, "index", config)


def test_an_empty_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = Documents([], np.empty((0, 32), np.float32), np.empty(0, np.int64))
    write_dataset(str(tmp_path / "vectors"), [("a.jsonl", nothing)])
    assert "has no vectors" in refused(capsys, "index", index_config(tmp_path))


def _poison(file: Path) -> None:
    table = pq.read_table(file)
    values = table["embedding"].combine_chunks().flatten().to_numpy().copy()
    values[5 * 32] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), 32)
    place = table.schema.get_field_index("embedding")
    pq.write_table(table.set_column(place, table.schema.field(place), column), file)


def _other_model(file: Path) -> None:
    table = pq.read_table(file)
    facts = json.loads(table.schema.metadata[b"embedfleet.dataset"])
    facts["fingerprint"] = "0" * 64
    metadata = {**table.schema.metadata, b"embedfleet.dataset": json.dumps(facts).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), file)


def _other_size(file: Path) -> None:
    table = pq.read_table(file)
    values = table["embedding"].combine_chunks().flatten().to_numpy()
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values.reshape(-1, 32)[:, :16]).ravel()), 16
    )
    place = table.schema.get_field_index("embedding")
    field = pa.field("embedding", column.type)
    changed = table.set_column(place, field, column)
    pq.write_table(changed, file)


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_poison, "that vector holds NaN"),
        (_other_model, "vectors of two models cannot share an index"),
        (_other_size, "give vectors of 32 numbers"),
        (Path.unlink, "is gone from"),
        (lambda file: file.write_bytes(b"no parquet"), "does not read"),
    ],
)
def test_embeddings_that_cannot_be_indexed(
    spoil: Callable[[Path], object], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "index")
    spoil(sorted((folder / "vectors" / "data").iterdir())[3])
    assert told in refused(capsys, "index", index_config(folder, spec="IVF16,SQ8", recall_target=0.5))
    assert not list((folder / "index").glob("snapshots/*.json"))


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("pattern", ["shards/*.faiss", "shards/*.ids.parquet", "trained.faiss"])
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_flip, "its content is not what was written"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "bytes"),
        (Path.unlink, "the file is gone"),
    ],
)
def test_damaged_files_are_found_before_faiss_reads_them(
    pattern: str, spoil: Callable[[Path], object], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(sorted((folder / "index").glob(pattern))[0])
    error = refused(capsys, "explain", folder / "index", "doc_id=doc-1")
    assert told in error
    assert "restore" in error


def test_a_shard_of_another_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = folder / "index" / "snapshots" / "00000001.json"
    stored = json.loads(snapshot.read_text())
    stored["shards"][1]["trained_sha256"] = "0" * 64
    snapshot.write_text(json.dumps(stored))
    assert "was built with the trained index" in refused(capsys, "explain", folder / "index", "doc_id=doc-1")


def test_explain_says_that_a_document_is_not_there(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "check doc_id: 'nobody'" in refused(capsys, "explain", built / "index", "doc_id=nobody")


def test_explain_names_shard_file_and_row(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job("explain", built / "index", "doc_id=doc-777") == 0
    told = capsys.readouterr().out
    assert "1 vector" in told
    assert "part-3.jsonl, row 177" in told
    assert "shard     1 of 2" in told
    assert "lang = 'de'" in told


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["query=hello", "queries.path=x.jsonl"], "give either query="),
        (["queries.path=x.jsonl"], "give output.path"),
        (["query=hello"], "it says which model to use"),
        (["queries.path=/nowhere.jsonl", "output.path=/tmp/x.parquet"], "/nowhere.jsonl"),
        (
            ["queries.path={q}", "queries.vector=v", "output.path={o}", "filter=color == 'red'"],
            "there is no column 'color'",
        ),
        (["queries.path={q}", "queries.vector=v", "output.path={o}", "filter=lang ="], "mend filter"),
        (["queries.path={q}", "queries.vector=v", "output.path={o}", "columns=[color]"], "the index has no 'color'"),
        (["queries.path={q}", "queries.vector=w", "output.path={o}"], "has no column 'w'"),
        (["queries.path={short}", "queries.vector=v", "output.path={o}"], "give vectors of 32 numbers"),
        (["queries.path={nan}", "queries.vector=v", "output.path={o}"], "holds NaN"),
        (["k=0", "query=x"], "k:"),
    ],
)
def test_searches_that_cannot_be(
    changes: list[str], told: str, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, vector in (("q", [0.1] * 32), ("short", [0.1] * 16), ("nan", [float("nan")] * 32)):
        pq.write_table(pa.table({"v": [vector]}), tmp_path / f"{name}.parquet")
    names = {name: str(tmp_path / f"{name}.parquet") for name in ("q", "short", "nan", "o")}
    arguments = [change.replace("{q}", names["q"]).replace("{o}", names["o"]) for change in changes]
    arguments = [a.replace("{short}", names["short"]).replace("{nan}", names["nan"]) for a in arguments]
    assert told in refused(capsys, "search", built / "index", *arguments)
    assert not Path(names["o"]).exists()
