"""Duplicate ids across files, runs and rejected rows."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.embedding.id_comparison import Holder, find_later
from operators.storage import Location
from operators.store.id_check import Role
from tests.jobs.running import documents, rejected_of, run_job, snapshot_of, vectors_of, write_config, write_jsonl


@pytest.mark.usefixtures("local_ray")
def test_keep_first_rejects_the_later_ones_and_verifies(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [*documents(10), {"id": "doc-2", "text": "in the same file"}])
    write_jsonl(tmp_path / "in" / "b.jsonl", [{"id": "doc-5", "text": "in another file"}, *documents(3, start=20)])
    config = write_config(
        tmp_path,
        tiny_model,
        source={"path": str(tmp_path / "in"), "duplicates": "keep_first"},
        gates={"max_rejected_fraction": 1.0, "max_dropped_fraction": 1.0},
    )
    assert run_job("embed", config) == 0
    ids = vectors_of(tmp_path)["doc_id"].to_pylist()
    assert sorted(ids) == sorted(row["id"] for row in [*documents(10), *documents(3, start=20)])
    assert rejected_of(tmp_path) == {"doc-2": "duplicate_id", "doc-5": "duplicate_id"}
    assert run_job("verify", config) == 0
    write_jsonl(tmp_path / "in" / "0.jsonl", [{"id": "doc-1", "text": "sorts before, but came later"}])
    assert run_job("embed", config) == 0
    assert json.loads((tmp_path / "vectors" / "report.json").read_text())["counts"]["rejected"] == 1
    assert run_job("verify", config) == 0
    shutil.rmtree(tmp_path / "vectors" / "ids")  # as in outputs of earlier versions
    write_jsonl(tmp_path / "in" / "00.jsonl", [{"id": "doc-1", "text": "later still"}, *documents(1, start=30)])
    assert run_job("embed", config) == 0
    assert json.loads((tmp_path / "vectors" / "report.json").read_text())["counts"]["rejected"] == 1
    assert sorted(vectors_of(tmp_path)["doc_id"].to_pylist()) == sorted([*ids, "doc-30"])
    assert run_job("verify", config) == 0


@pytest.mark.usefixtures("local_ray")
def test_the_ids_of_committed_files_are_not_read_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashes alone tell that no id came before: the committed data files could not be read.

    As for large outputs: of small ones the driver itself looks at the ids.
    """
    monkeypatch.setattr("jobs.embedding.duplicates._READ_HERE_FILES", 0)
    config = write_config(tmp_path, tiny_model, source={"path": str(tmp_path / "in")})
    for start, name in ((0, "a"), (20, "b")):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", documents(10, start=start))
        assert run_job("embed", config) == 0
    for data in (tmp_path / "vectors" / "data").iterdir():
        data.write_bytes(bytes(data.stat().st_size))
    write_jsonl(tmp_path / "in" / "c.jsonl", documents(3, start=40))
    assert run_job("embed", config) == 0
    assert sum(record.rows for record in snapshot_of(tmp_path).records) == 23


def generated(holder: Holder, ids: dict[str, list[str | None]]) -> Iterator[pa.Array]:
    """The ids of a holder, in arrays of three."""
    for start in range(0, len(ids[holder.digest]), 3):
        yield pa.array(ids[holder.digest][start : start + 3], pa.string())


def expected_later(
    holders: list[Holder], roles: list[Role], ids: dict[str, list[str | None]]
) -> dict[tuple[int, int], str]:
    """The rows of checked holders whose id came before."""
    seen: set[str] = set()
    later = {}
    for ordinal, (holder, role) in enumerate(zip(holders, roles, strict=True)):
        for position, doc_id in enumerate(ids[holder.digest]):
            if doc_id is not None and doc_id in seen and role != "stored":
                later[ordinal, position] = doc_id
            seen |= {doc_id} if doc_id is not None else set()
    return later


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("seed", range(3))
def test_runs_after_runs_find_what_a_dictionary_does(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run commits some units, drops others and brings new ones; ids are few, so that they meet often."""
    monkeypatch.setattr("jobs.embedding.id_comparison._IDS_PER_TASK", 16)  # several parts and groups of so few ids
    rng, dataset = np.random.default_rng(seed), Location(str(tmp_path))
    names = np.array([f"doc-{i}" for i in range(300)] + [None], object)
    ids: dict[str, list[str | None]] = {}
    stored: list[Holder] = []
    for run in range(4):
        pending = [Holder(f"{run}-{i}", (), None, 10) for i in range(rng.integers(1, 6))]
        ids |= {holder.digest: rng.choice(names, rng.integers(0, 40)).tolist() for holder in pending}
        holders = [*stored, *pending]
        roles: list[Role] = ["stored"] * len(stored)
        roles += ["pending"] * len(pending) if run < 3 else ["checked"] * len(pending)
        read = functools.partial(generated, ids=ids)
        later = find_later(dataset, holders, roles, read, None).to_pylist()
        expected = expected_later(holders, roles, ids)
        found = {(row["ordinal"], row["position"]): row["doc_id"] for row in later}
        assert {place: i for place, i in found.items() if roles[place[0]] != "stored"} == expected
        assert list(found) == sorted(found)
        stored = [holder for holder in holders if rng.random() < 0.7]


@pytest.mark.usefixtures("without_ray")
def test_keep_all_embeds_each(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "docs.jsonl", [*documents(4), {"id": "doc-2", "text": "again"}])
    config = write_config(tmp_path, tiny_model, source={"duplicates": "keep_all"})
    assert run_job("embed", config) == 0
    assert vectors_of(tmp_path)["doc_id"].to_pylist().count("doc-2") == 2
    assert sum(record.rows for record in snapshot_of(tmp_path).records) == 5
    assert run_job("verify", config) == 0
