"""Snapshots: round trips, races, and what is known of a dataset's units and files."""

from __future__ import annotations

import dataclasses
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from operators.corpus.source import Source
from operators.corpus.units import plan_units
from operators.errors import InputError
from operators.storage import Location, delete, read_bytes, write_whole
from operators.store.fragments import FragmentRecord, data_file, rejected_file
from operators.store.snapshots import (
    FilesGone,
    Snapshot,
    latest_snapshot,
    publish,
    read_snapshot,
    snapshot_numbers,
    whole_files,
    whole_units,
    written_fragments,
)
from operators.work.fragment import Extent, SourceFile, Unit
from tests.operators.store.stored_fragments import laid_out, make_dataset, make_identity, make_record, records_of


def test_a_snapshot_is_read_back_in_order(tmp_path: Path) -> None:
    dataset = Location(str(tmp_path))
    assert latest_snapshot(dataset) == Snapshot(0, ())
    records = laid_out(dataset, records_of(30))
    random.Random(1).shuffle(records)
    first = publish(dataset, records)
    assert first == Snapshot(1, tuple(records)) == read_snapshot(dataset, 1) == latest_snapshot(dataset)
    second = publish(dataset, records[:7])
    assert (second.number, snapshot_numbers(dataset)) == (2, [1, 2])
    assert latest_snapshot(dataset) == second
    assert read_snapshot(dataset, 1) == first


def test_packs_of_many_files_keep_their_extents(tmp_path: Path) -> None:
    files = [SourceFile(f"/none/{i} é.txt", i, f"etag{i}") for i in range(300)]
    units = list(plan_units(files, Source(path="/none"), (), 65536, {}))
    records = laid_out(Location(str(tmp_path)), [make_record(unit, 0, True) for unit in units])
    assert publish(Location(str(tmp_path)), records).records == tuple(records)
    assert latest_snapshot(Location(str(tmp_path))).records == tuple(records)


def test_the_same_fragments_are_published_once(tmp_path: Path) -> None:
    dataset = Location(str(tmp_path))
    records = laid_out(dataset, records_of(3))
    assert publish(dataset, records).number == publish(dataset, records[::-1]).number == 1
    assert publish(dataset, records[1:]).number == 2
    assert publish(dataset, records).number == 3


def test_racing_runs_lose_nothing(tmp_path: Path) -> None:
    """Sixteen writers of different fragments at once: sixteen snapshots, each whole and under a number of its own."""
    dataset = Location(str(tmp_path))
    runs = [[record] for record in laid_out(dataset, records_of(16, parts=1))]
    with ThreadPoolExecutor(16) as threads:
        published = list(threads.map(lambda run: publish(dataset, run), runs))
    assert sorted(snapshot.number for snapshot in published) == list(range(1, 17))
    assert [snapshot.records for snapshot in published] == [tuple(run) for run in runs]
    for snapshot in published:
        assert read_snapshot(dataset, snapshot.number) == snapshot


def test_racing_runs_of_the_same_job_share_a_snapshot(tmp_path: Path) -> None:
    dataset = Location(str(tmp_path))
    records = laid_out(dataset, records_of(5))
    with ThreadPoolExecutor(8) as threads:
        published = list(threads.map(lambda _: publish(dataset, records), range(8)))
    assert {snapshot.number for snapshot in published} == {1}
    assert snapshot_numbers(dataset) == [1]


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    publish(Location(str(tmp_path)), laid_out(Location(str(tmp_path)), records_of(2)))
    path = tmp_path / "snapshots" / "00000001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"^restore .*00000001.parquet"):
        latest_snapshot(Location(str(tmp_path)))


def test_other_files_are_no_snapshots(tmp_path: Path) -> None:
    dataset = Location(str(tmp_path))
    publish(dataset, laid_out(dataset, records_of(1)))
    for name in ("00000002.parquet.tmp", "x0000003.parquet", "000000004.parquet", "README"):
        (tmp_path / "snapshots" / name).write_bytes(b"x")
    assert snapshot_numbers(dataset) == [1]


def test_nothing_is_published_of_which_a_file_is_gone_or_another(tmp_path: Path) -> None:
    dataset = Location(str(tmp_path))
    records = laid_out(dataset, records_of(3))
    lost = data_file(dataset, records[2].key)
    whole = read_bytes(lost)
    for spoil in (lambda: write_whole(lost, whole[1:]), lambda: delete(lost)):
        spoil()
        with pytest.raises(FilesGone, match=rf"^run embed again: data/{records[2].key}.parquet"):
            publish(dataset, records)
    write_whole(lost, whole)
    delete(rejected_file(dataset, records[0].key))
    with pytest.raises(FilesGone, match=rf"^run embed again: rejected/{records[0].key}.parquet"):
        publish(dataset, records)
    assert snapshot_numbers(dataset) == []


# --- units and files ---------------------------------------------------------------------------------------------


def test_a_unit_is_whole_with_every_part_up_to_the_last() -> None:
    records = records_of(4, parts=3)
    a, b, c, d = (records[i : i + 3] for i in range(0, 12, 3))
    there = [*a[::-1], *b[:2], *c[1:], d[0], d[2]]  # b has no last part, c no first, d no middle
    assert whole_units(there) == {a[0].fragment.unit.digest: tuple(a)}
    assert whole_units([]) == {}


READING = Source(path="/none").reading(())


def split_records(name: str, *bounds: tuple[int, int], reading: str = READING) -> list[FragmentRecord]:
    file = SourceFile(f"/none/{name}.parquet", 1000, "1")
    return [make_record(Unit.of((Extent(file, start, end),), reading), 0, True) for start, end in bounds]


def test_a_file_is_whole_when_its_units_meet() -> None:
    whole = split_records("whole", (0, 3), (3, 7), (7, -1))
    single = split_records("single", (0, -1))
    records = [*whole[::-1], *single]
    records += split_records("no_end", (0, 3), (3, 7))
    records += split_records("no_start", (3, 7), (7, -1))
    records += split_records("gap", (0, 3), (4, -1))
    records += split_records("read_otherwise", (0, -1), reading=READING + "x")
    partly = split_records("partly", (0, 3), (3, -1))
    records += [partly[0], dataclasses.replace(partly[1], fragment=dataclasses.replace(partly[1].fragment, last=False))]
    random.Random(2).shuffle(records)
    found = whole_files(records, READING)
    assert {file.path: units for file, units in found.items()} == {
        "/none/whole.parquet": tuple(record.fragment.unit for record in whole),
        "/none/single.parquet": (single[0].fragment.unit,),
    }


def test_packed_files_are_not_known_one_by_one() -> None:
    files = [SourceFile(f"/none/{i}.txt", 10, "1") for i in range(3)]
    unit = Unit.of(tuple(Extent(file) for file in files), READING)
    assert whole_files([make_record(unit, 0, True)], READING) == {}


def test_what_was_written_is_found_without_a_snapshot(tmp_path: Path) -> None:
    dataset, _, records = make_dataset(tmp_path, make_identity())
    unit = records[0].fragment.unit.digest
    assert written_fragments(dataset, [unit, "other"]) == {record.key: record for record in records}
    assert written_fragments(dataset, ["other"]) == {}
    Path(data_file(dataset, records[1].key).url).unlink()
    assert set(written_fragments(dataset, [unit])) == {records[0].key, records[2].key}


def test_a_data_file_that_does_not_read_counts_as_not_written(tmp_path: Path) -> None:
    dataset, _, records = make_dataset(tmp_path, make_identity())
    for record, content in zip(records, (b"", b"PAR1 and then nothing"), strict=False):
        Path(data_file(dataset, record.key).url).write_bytes(content)
    found = written_fragments(dataset, [records[0].fragment.unit.digest])
    assert list(found) == [records[2].key]
