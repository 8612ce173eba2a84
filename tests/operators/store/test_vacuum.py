"""Vacuum removes what no kept snapshot names, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from operators.errors import InputError
from operators.storage import Location
from operators.storage.lease import using
from operators.store.fragments import FragmentRecord, data_file
from operators.store.id_hashes import write_segments
from operators.store.snapshots import publish, read_snapshot, snapshot_files, snapshot_numbers
from operators.store.vacuum import Removed, orphans, vacuum
from tests.operators.store.stored_fragments import make_dataset, make_identity

NOW = time.time()
DAMAGED = "0" * 24


def aged_dataset(folder: Path) -> tuple[Location, list[FragmentRecord]]:
    """Snapshot 1 names fragments 0 to 3, snapshot 2 fragments 1 to 4; fragment 5 is in none. All are an hour old."""
    dataset, _, records = make_dataset(folder, make_identity(), num_rows=60)
    publish(dataset, records[:4])
    publish(dataset, records[1:5])
    for path in (folder / "vectors").rglob("*.parquet"):
        os.utime(path, (NOW - 3600, NOW - 3600))
    return dataset, records


def present(dataset: Location, folder: str) -> set[str]:
    return {path.stem for path in (Path(dataset.url) / folder).iterdir()}


@pytest.mark.parametrize(("keep", "expected"), [(1, [1, 2, 3, 4]), (2, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])])
def test_what_kept_snapshots_name_stays(tmp_path: Path, keep: int, expected: list[int]) -> None:
    dataset, records = aged_dataset(tmp_path)
    sizes = {info.url: info.size for _, info in orphans(dataset, [1, 2][-keep:], NOW)}
    done = vacuum(dataset, keep, 60)
    assert (done.files, done.bytes, done.snapshots) == (len(sizes), sum(sizes.values()), 2 - len([1, 2][-keep:]))
    kept = {records[i].key for i in expected}
    assert present(dataset, "data") == kept
    assert present(dataset, "rejected") == {record.key for record in records if record.key in kept and record.rejected}
    assert snapshot_numbers(dataset) == [1, 2][-keep:]
    assert vacuum(dataset, keep, 60) == Removed(0, 0)


def test_young_files_stay(tmp_path: Path) -> None:
    dataset, records = aged_dataset(tmp_path)
    path = data_file(dataset, records[5].key).url
    os.utime(path, (NOW - 10, NOW - 10))
    assert vacuum(dataset, 2, 600) == Removed(0, 0), "also its rejected rows, without which it would count as done"
    assert records[5].key in present(dataset, "data")
    assert vacuum(dataset, 2, 0).files == 2
    assert records[5].key not in present(dataset, "data")


def test_a_look_deletes_nothing(tmp_path: Path) -> None:
    dataset, records = aged_dataset(tmp_path)
    found = {Path(info.url).stem for _, info in orphans(dataset, [2], NOW)}
    assert found == {records[0].key, records[5].key}
    assert present(dataset, "data") == {record.key for record in records}


def test_hashes_stay_while_a_kept_snapshot_has_a_unit_of_theirs(tmp_path: Path) -> None:
    dataset, records = aged_dataset(tmp_path)
    unit = records[0].fragment.unit.digest
    hashes = [np.array([1, 2], np.uint64)]
    (needed,) = write_segments(dataset, [(unit, hashes), ("gone", hashes)], True)
    (same,) = write_segments(dataset, [(unit, hashes)], True)
    (gone,) = write_segments(dataset, [("gone", hashes)], True)
    (tmp_path / "vectors" / "ids" / f"{DAMAGED}.parquet").write_bytes(b"no parquet")
    for path in (tmp_path / "vectors" / "ids").iterdir():
        os.utime(path, (NOW - 3600, NOW - 3600))
    vacuum(dataset, 9, 7200)
    assert present(dataset, "ids") == {needed.key, same.key, gone.key, DAMAGED}
    vacuum(dataset, 9, 60)
    assert len(present(dataset, "ids") & {needed.key, same.key}) == len(present(dataset, "ids")) == 1


def test_an_empty_dataset(tmp_path: Path) -> None:
    assert vacuum(Location(str(tmp_path / "none")), 1, 0) == Removed(0, 0)


def test_a_run_at_work_keeps_everything_and_a_reader_its_snapshot(tmp_path: Path) -> None:
    dataset, records = aged_dataset(tmp_path)
    with using(dataset, "embed"):
        done = vacuum(dataset, 1, 60)
    assert (done.files, [user.what for user in done.users]) == (0, ["embed"])
    assert len(present(dataset, "data")) == 6
    with using(dataset, "search", (1,)):
        vacuum(dataset, 1, 60)
    assert present(dataset, "data") == {record.key for record in records[:5]}
    assert snapshot_numbers(dataset) == [1, 2]
    vacuum(dataset, 1, 60)
    assert snapshot_numbers(dataset) == [2]


def test_a_snapshot_that_was_replaced_just_now_stays_however_old_it_is(tmp_path: Path) -> None:
    dataset, records = aged_dataset(tmp_path)
    replacing = tmp_path / "vectors" / "snapshots" / "00000002.parquet"
    os.utime(replacing, (NOW - 10, NOW - 10))
    assert vacuum(dataset, 1, 600).snapshots == 0
    assert snapshot_numbers(dataset) == [1, 2]
    assert present(dataset, "data") == {record.key for record in records[:5]}
    assert vacuum(dataset, 1, 0).snapshots == 1


def test_only_names_of_our_form_go(tmp_path: Path) -> None:
    dataset, _ = aged_dataset(tmp_path)
    others = ["notes.txt", "part-00000.parquet", "mine.parquet", ".hidden"]
    for folder in ("data", "rejected", "ids", "."):
        for name in others:
            path = tmp_path / "vectors" / folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("mine")
            os.utime(path, (1, 1))
    partial = tmp_path / "vectors" / "data" / f".writing-{'a' * 32}"
    partial.write_text("half")
    os.utime(partial, (1, 1))
    vacuum(dataset, 1, 0)
    assert not partial.exists()
    for folder in ("data", "rejected", "ids", "."):
        assert {path.name for path in (tmp_path / "vectors" / folder).iterdir()} >= set(others)


def test_numbers_of_old_snapshots_never_come_again(tmp_path: Path) -> None:
    dataset, records = aged_dataset(tmp_path)
    vacuum(dataset, 1, 60)
    assert not snapshot_files(dataset).create(1, b"of a run that was held up since the beginning")
    with pytest.raises(InputError, match="^choose another snapshot: 00000001.parquet was vacuumed"):
        read_snapshot(dataset, 1)
    assert publish(dataset, records[2:5]).number == 4  # 3 was the vacuum's fence
