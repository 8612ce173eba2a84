"""Duplicate ids across files, runs and rejected rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.jobs.running import documents, rejected_of, run_job, snapshot_of, vectors_of, write_config, write_jsonl

pytestmark = pytest.mark.usefixtures("local_ray")


def test_keep_first_rejects_the_later_ones_and_verifies(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [*documents(10), {"id": "doc-2", "text": "in the same file"}])
    write_jsonl(tmp_path / "in" / "b.jsonl", [{"id": "doc-5", "text": "in another file"}, *documents(3, start=20)])
    config = write_config(
        tmp_path,
        tiny_model,
        source={"path": str(tmp_path / "in"), "duplicates": "keep_first"},
        gates={"max_rejected_fraction": 1.0},
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


def test_keep_all_embeds_each(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "docs.jsonl", [*documents(4), {"id": "doc-2", "text": "again"}])
    config = write_config(tmp_path, tiny_model, source={"duplicates": "keep_all"})
    assert run_job("embed", config) == 0
    assert vectors_of(tmp_path)["doc_id"].to_pylist().count("doc-2") == 2
    assert sum(record.rows for record in snapshot_of(tmp_path).records) == 5
    assert run_job("verify", config) == 0
