"""The real jobs on two raylets with token authentication, submitted from a folder that is not the code's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.environment import ROOT
from tests.checkpoints import WORDS, tiny_bert
from tests.cluster.raylets import DASHBOARD, Raylets

CONFIG = """
source: {path: "corpus/*.jsonl", id: id, text: text, rows_per_fragment: 25, pack_below_bytes: 0}
model: ./model
output: {path: vectors, dtype: float32}
compute: {workers: [1, 2]}
"""
NUM_FILES, NUM_ROWS = 4, 50


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_bert(tmp_path / "model")
    (tmp_path / "corpus").mkdir()
    for file in range(NUM_FILES):
        rows = [{"id": f"{file}/{row}", "text": " ".join(WORDS[row : row + 20])} for row in range(NUM_ROWS)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"corpus/{file}.jsonl").write_text(text)
    (tmp_path / "embed.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_embed_and_verify_submitted_to_two_raylets_embed_every_row(raylets: Raylets, folder: Path) -> None:
    def submit(job: str) -> str:
        command = [sys.executable, "-m", "cluster", "submit", job, "embed.yaml", "--address", DASHBOARD]
        done = raylets.run(command, folder, {"PYTHONPATH": str(ROOT)}, seconds=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    submit("embed")
    ids = pq.ParquetDataset(folder / "vectors/data").read(columns=["doc_id"])["doc_id"].to_pylist()
    assert sorted(ids) == sorted(f"{file}/{row}" for file in range(NUM_FILES) for row in range(NUM_ROWS))
    assert "200 source rows = 200 embedded" in submit("verify")
