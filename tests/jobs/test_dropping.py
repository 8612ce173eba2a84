"""A source that has shrunk, or another one, does not empty a dataset without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.jobs.running import documents, write_jsonl
from tests.jobs.test_in_process import config_of, run_alone, snapshot_of


def test_what_leaves_a_dataset_is_told_and_limited(tmp_path: Path, tiny_model: Path) -> None:
    corpus = tmp_path / "corpus"
    for number in range(4):
        write_jsonl(corpus / f"{number}.jsonl", documents(10, start=10 * number))

    def embed(**settings: Any) -> tuple[int, str]:
        code, output, _ = run_alone("embed", config_of(tmp_path, tiny_model, **settings))
        return code, output

    def published() -> tuple[int, int]:
        snapshot = snapshot_of(tmp_path)
        return snapshot.number, sum(record.rows for record in snapshot.records)

    whole = {"path": str(corpus)}
    code, output = embed(source=whole)
    assert (code, published()) == (0, (1, 40)), output
    code, output = embed(source={"path": str(corpus / "0.jsonl")})  # another source.path on the same output
    assert (code, published()) == (3, (1, 40)), output
    assert "the source has no more 3 files with about 30 rows" in output
    assert "nothing was published" in output
    write_jsonl(corpus / "3.jsonl", documents(1, start=30))  # a file that shrank
    code, output = embed(source=whole)
    assert (code, published()) == (3, (1, 40)), output
    assert "the source had 40 rows and has 31" in output
    code, output = embed(source=whole, gates={"max_dropped_fraction": 0.25})
    assert (code, published()) == (0, (2, 31)), output
    (corpus / "3.jsonl").unlink()
    code, output = embed(source=whole)
    assert (code, published()) == (0, (3, 30)), output
    assert "the source has no more 1 files with about 1 rows" in output
    for file in corpus.iterdir():
        file.unlink()
    code, output = embed(source=whole, gates={"max_dropped_fraction": 1.0})  # an empty listing is never taken for one
    assert (code, published()) == (2, (3, 30)), output
