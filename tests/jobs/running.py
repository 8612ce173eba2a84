"""Run jobs as their user does, in a process of their own or in this one, and read back what they made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.command_line.main import main
from jobs.embedding import small
from operators.storage import locate
from operators.store.snapshots import Snapshot, latest_snapshot

ROOT = Path(__file__).resolve().parents[2]


def write_config(folder: Path, model: Path | str, **sections: Any) -> Path:
    """A config file for `folder/docs.jsonl` (unless `source` says otherwise) with output `folder/vectors`."""
    source = {"path": str(folder / "docs.jsonl"), "id": "id", **sections.pop("source", {})}
    output = {"path": str(folder / "vectors"), **sections.pop("output", {})}
    compute = {"workers": [1, 1], **sections.pop("compute", {})}
    config = {"source": source, "model": str(model), "output": output, "compute": compute, **sections}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def documents(num: int, start: int = 0) -> list[dict[str, Any]]:
    """Small documents of different lengths with string ids."""
    words = [
        "time",
        "people",
        "year",
        "way",
        "day",
        "man",
        "thing",
        "world",
        "life",
        "hand",
        "part",
        "place",
        "case",
        "week",
        "company",
    ]
    return [
        {"id": f"doc-{i}", "text": " ".join(words[(i * 7 + j) % len(words)] for j in range(1 + i % 23))}
        for i in range(start, start + num)
    ]


def run_job(*arguments: object) -> int:
    """Run a job in this process (and its Ray); returns the exit code."""
    return main([str(argument) for argument in arguments])


@contextmanager
def unseen_ray() -> Iterator[None]:
    """Small jobs that leave the workers to the job run in this process while the block lasts, though a Ray is up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "_has_ray", lambda: False)
        yield


def start_job(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a job as a process of its own, in a session of its own so that it can be killed with all it started."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *(str(argument) for argument in arguments)],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def snapshot_of(folder: Path) -> Snapshot:
    """The latest snapshot of `folder/vectors`."""
    return latest_snapshot(locate(str(folder / "vectors")))


def vectors_of(folder: Path) -> pa.Table:
    """All vectors of the latest snapshot, by document and chunk."""
    return _read(folder, "data").sort_by([("doc_id", "ascending"), ("chunk", "ascending")])


def rejected_of(folder: Path) -> dict[str | None, str]:
    """Reason by document id (or path#row where there is none) of the latest snapshot's rejected rows."""
    table = _read(folder, "rejected")
    return {
        row["doc_id"] if row["doc_id"] is not None else f"{Path(row['source_path']).name}#{row['source_row']}": row[
            "reason"
        ]
        for row in table.to_pylist()
    }


def _read(folder: Path, kind: str) -> pa.Table:
    files = [folder / "vectors" / kind / f"{key}.parquet" for key in sorted(snapshot_of(folder).keys)]
    tables = [pq.read_table(file) for file in files if file.exists()]
    return (
        pa.concat_tables(tables)
        if tables
        else pa.table({"doc_id": [], "source_path": [], "source_row": [], "reason": []})
    )
