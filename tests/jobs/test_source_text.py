"""The text that is shown of a vector is the one that was embedded, whatever became of the source; else it says so."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.embedding.queries import document_config
from jobs.indexing.origin import Origin, SourceText, text_of
from operators.pipeline.late_chunking import text_hashes
from operators.storage import locate
from operators.store.dataset import read_identity
from operators.store.fragments import data_file, read_table
from operators.store.snapshots import latest_snapshot
from tests.jobs.running import documents, run_job, write_config, write_jsonl

pytestmark = pytest.mark.usefixtures("without_ray")
Write = Callable[[Path, list[dict[str, Any]]], object]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)


def write_texts(path: Path, rows: list[dict[str, Any]]) -> None:
    """A folder of one text file a row, in place of one file."""
    path.mkdir(parents=True, exist_ok=True)
    for old in path.iterdir():
        old.unlink()
    for number, row in enumerate(rows):
        (path / f"{number:03d}.txt").write_text(row["text"])


FORMATS: list[tuple[str, Write, dict[str, Any]]] = [
    ("docs.jsonl", write_jsonl, {}),
    ("docs.parquet", write_parquet, {}),
    ("docs.csv", write_csv, {}),
    ("texts", write_texts, {"id": "path", "format": "text"}),
]


def embedded(folder: Path, model: Path, name: str, write: Write, source: dict[str, Any], **sections: Any) -> Path:
    """The output of 30 documents in `folder/NAME`."""
    write(folder / name, documents(30))
    config = write_config(folder, model, source={"path": str(folder / name), **source}, **sections)
    assert run_job("embed", config) == 0
    return folder / "vectors"


def shown(output: Path) -> list[tuple[SourceText, bytes]]:
    """What is shown of each vector, and the hash of what it was made of."""
    dataset = locate(str(output))
    config, identity = document_config(dataset), read_identity(dataset)
    assert identity is not None
    found = []
    for record in latest_snapshot(dataset).records:
        for number, facts in enumerate(read_table(data_file(dataset, record.key)).to_pylist()):
            origin = Origin(record, number, facts, facts["text_hash"])
            found.append((text_of(config, identity.keep, origin), facts["text_hash"]))
    return found


@pytest.mark.parametrize(("name", "write", "source"), FORMATS, ids=[name for name, _, _ in FORMATS])
def test_no_other_text_is_shown(
    name: str, write: Write, source: dict[str, Any], tmp_path: Path, tiny_model: Path
) -> None:
    output = embedded(tmp_path, tiny_model, name, write, source)
    texts = {row["text"] for row in documents(30)}
    assert {found.text for found, _ in shown(output)} == texts
    changes = {
        "its first five removed": documents(30)[5:],
        "one edited": [
            {**row, "text": f"more {row['text']}"} if i == 7 else row for i, row in enumerate(documents(30))
        ],
        "replaced": documents(30, start=100),
    }
    for change, rows in changes.items():
        write(tmp_path / name, rows)
        found = shown(output)
        for one, text_hash in found:
            if one.text is not None:
                assert text_hashes([one.text])[0].as_py() == text_hash, change
            else:
                assert "changed" in one.missing or "gone" in one.missing
        assert any(one.text is None for one, _ in found), change
    (tmp_path / name).rename(tmp_path / "elsewhere")
    assert all(one.text is None and "gone" in one.missing for one, _ in shown(output))


def test_with_late_chunking_a_file_that_changed_shows_nothing(tmp_path: Path, tiny_model: Path) -> None:
    """The hash is of a chunk and of what its window shows, so the file must be the one that was read."""
    chunking = {"tokens": 8, "overlap": 0, "late": True}
    output = embedded(tmp_path, tiny_model, "docs.jsonl", write_jsonl, {}, chunking=chunking)
    assert all(one.text for one, _ in shown(output))
    write_jsonl(tmp_path / "docs.jsonl", documents(29))
    assert all(one.text is None for one, _ in shown(output))
