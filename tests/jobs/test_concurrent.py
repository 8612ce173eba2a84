"""Two runs of the same job at once share the work and agree on what is published."""

from __future__ import annotations

from pathlib import Path

import pytest

from operators.storage import locate
from operators.store.snapshots import read_snapshot, snapshot_numbers
from tests.jobs.running import documents, start_job, vectors_of, write_config, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_two_runs_at_once(tmp_path: Path, tiny_model: Path) -> None:
    for i in range(12):
        write_jsonl(tmp_path / "in" / f"{i:02d}.jsonl", documents(400, start=400 * i))
    config = write_config(tmp_path, tiny_model, source={"path": str(tmp_path / "in"), "rows_per_fragment": 100})
    both = [start_job("embed", config) for _ in range(2)]
    outputs = [process.communicate(timeout=800)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    dataset = locate(str(tmp_path / "vectors"))
    published = {read_snapshot(dataset, number).keys for number in snapshot_numbers(dataset)}
    assert len(published) == 1
    assert len(set(vectors_of(tmp_path)["doc_id"].to_pylist())) == 4800
    verification = start_job("verify", config)
    output, _ = verification.communicate(timeout=600)
    assert verification.returncode == 0, output
