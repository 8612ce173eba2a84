"""A lost or damaged file of an index is found and made anew by running index again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from operators.index import open_index
from operators.index.snapshot import Settings
from tests.jobs.running import run_job, unseen_ray
from tests.jobs.test_index import DIM, changed_corpus, corpus, files_of, index_config, snapshot_at
from tests.vector_datasets import clustered, write_dataset

pytestmark = pytest.mark.usefixtures("without_ray")

SETTINGS = {"spec": "IVF16,Flat", "recall_target": 0.5, "shards": {"rows": 1000}}


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 4,000 vectors and its index of four shards, then updated: with dead, moved and added rows."""
    folder = tmp_path_factory.mktemp("damage")
    before = corpus()
    write_dataset(str(folder / "vectors"), files_of(before), rows_per_fragment=200)
    with unseen_ray():
        assert run_job("index", index_config(folder, **SETTINGS)) == 0
        write_dataset(str(folder / "vectors"), changed_corpus(before)[0], rows_per_fragment=200)
        assert run_job("index", index_config(folder, **SETTINGS)) == 0
    return folder


@pytest.fixture
def folder(patched: Path, tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    shutil.copytree(patched / "vectors", tmp_path / "vectors")
    shutil.copytree(patched / "index", tmp_path / "index")
    return tmp_path


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [flip, cut, Path.unlink])
@pytest.mark.parametrize(
    "pattern",
    ["shards/*.faiss", "shards/*.ids.parquet", "shards/*.dead-*.parquet", "shards/*.moved-*.parquet", "trained.faiss"],
)
def test_a_damaged_file_is_made_anew(
    pattern: str,
    spoil: Callable[[Path], object],
    patched: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = index_config(folder, embeddings=str(patched / "vectors"), **SETTINGS)
    damaged = sorted((folder / "index").glob(pattern))[0]
    spoil(damaged)
    assert run_job("verify", folder / "index") == 3
    assert damaged.name in capsys.readouterr().out
    assert run_job("index", config) == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert_finds_what_the_other_finds(folder, patched)
    assert run_job("verify", folder / "index") == 0
    assert "3,9" in capsys.readouterr().out
    assert run_job("index", config) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("spoil", [cut, Path.unlink])
@pytest.mark.parametrize("name", ["index.json", "snapshots/00000002.json"])
def test_a_damaged_record_is_written_again(
    name: str, spoil: Callable[[Path], object], patched: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = index_config(folder, embeddings=str(patched / "vectors"), **SETTINGS)
    spoil(folder / "index" / name)
    assert run_job("index", config) == 0
    assert ("nothing to do" in capsys.readouterr().out) == (name == "index.json"), "which is all that was lacking"
    assert_finds_what_the_other_finds(folder, patched)
    assert (folder / "index" / "index.json").read_bytes() == (patched / "index" / "index.json").read_bytes()


def test_what_recall_is_measured_with_is_made_anew(patched: Path, folder: Path) -> None:
    config = index_config(folder, embeddings=str(patched / "vectors"), **SETTINGS)
    for file in (folder / "index" / "recall").iterdir():
        cut(file)
    flip(sorted((folder / "index" / "shards").glob("*.faiss"))[0])
    assert run_job("index", config) == 0
    assert_finds_what_the_other_finds(folder, patched)


def assert_finds_what_the_other_finds(folder: Path, other: Path) -> None:
    queries = np.concatenate([clustered(50, DIM, seed=3), corpus().vectors[:300:3]])
    answers = [open_index(str(f / "index")).search(queries, 10, settings=Settings(nprobe=16)) for f in (folder, other)]
    assert answers[0]["doc_id"].to_pylist() == answers[1]["doc_id"].to_pylist()
    np.testing.assert_allclose(answers[0]["score"].to_numpy(), answers[1]["score"].to_numpy(), atol=1e-6)
    assert snapshot_at(folder).num_vectors == snapshot_at(other).num_vectors
