"""Vacuum of an index: what no kept snapshot names, of our own names alone."""

from __future__ import annotations

import os
from pathlib import Path

from operators.index.vacuum import vacuum_index
from operators.storage import Location
from operators.storage.lease import using

KEY = "0123456789abcdef01234567"
OURS = (
    f"shards/{KEY}.faiss",
    f"shards/{KEY}-89abcdef.faiss",
    f"shards/{KEY}.ids.parquet",
    f"shards/{KEY}.sparse.arrow",
    f"shards/{KEY}.dead-0123456789ab.parquet",
    f"recall/{KEY}.0123456789abcdef.parquet",
    f"scattered/{KEY}.7.arrows",
    f"scattered/{KEY}.json",
    f"shards/.writing-{'a' * 32}",
)
NEEDED = ("index.json", "trained.faiss", "trained-2.faiss", "recall/queries-0123456789ab.parquet")
NOT_OURS = ("notes.txt", "other.faiss", "shards/backup.faiss", f"shards/{KEY}.faiss.bak", "recall/mine.parquet")


def make(folder: Path) -> Location:
    """An index that was never finished, among files of others; all are old."""
    for name in (*OURS, *NEEDED, *NOT_OURS):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        os.utime(path, (1, 1))
    return Location(str(folder))


def present(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_without_a_snapshot_what_a_run_goes_on_from_stays(tmp_path: Path) -> None:
    index = make(tmp_path)
    assert vacuum_index(index, 1, 60).files == len(OURS)
    assert present(tmp_path) - {"snapshots/00000001.json"} == {*NEEDED, *NOT_OURS}


def test_a_run_at_work_keeps_everything(tmp_path: Path) -> None:
    index = make(tmp_path)
    with using(index, "index"):
        assert [user.what for user in vacuum_index(index, 1, 0).users] == ["index"]
    assert present(tmp_path) == {*OURS, *NEEDED, *NOT_OURS}
