"""Planning units: stable packs, files that are not opened, files that are split."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.corpus.packs import PACK_MAX_FILES
from operators.corpus.source import Source
from operators.corpus.units import OPEN_ABOVE_BYTES, PACK_TARGET_BYTES, choose_pack_below, plan_units
from operators.work.fragment import Extent, SourceFile, Unit
from tests.operators.corpus.reading_files import source_file

SOURCE = Source(path="/none")


def many_files(count: int, seed: int = 0) -> list[SourceFile]:
    """Small files of 1 to 16 KiB that exist nowhere: whoever opens one fails."""
    draw = random.Random(seed)
    return [SourceFile(f"/none/{i:06d}.txt", draw.randint(1 << 10, 16 << 10), "1") for i in range(count)]


def packs(files: list[SourceFile]) -> list[Unit]:
    return list(plan_units(files, SOURCE, (), 65536, {}))


def even_packs(files: list[SourceFile], target_bytes: int = 200_000) -> list[Unit]:
    source = Source(path="/none", bytes_per_fragment=target_bytes)
    return list(plan_units(files, source, (), 65536, {}, even_packs=True))


def changed_at(files: list[SourceFile], at: int, change: str) -> list[SourceFile]:
    changed = list(files)
    if change == "add":
        changed.insert(at, SourceFile(f"{files[at].path}-new.txt", 5000, "1"))
    elif change == "remove":
        del changed[at]
    elif change == "edit":
        changed[at] = SourceFile(files[at].path, files[at].size, "2")
    else:
        changed[at] = SourceFile(files[at].path, 60_000, "2")
    return changed


def test_even_packs_hold_every_file_once_in_order_and_none_is_twice_another() -> None:
    files = many_files(5000)
    units = even_packs(files)
    assert [extent.file for unit in units for extent in unit.extents] == files
    sizes = [unit.size_bytes for unit in units[:-1]]
    assert max(sizes) <= 200_000
    assert min(sizes) >= 100_000
    assert len(units) > 200


def test_even_packs_end_before_a_file_that_is_too_large_to_share() -> None:
    sizes = [3_000, 60_000, 60_000, 60_000, 90_000, 2_000]
    files = [SourceFile(f"/none/{i}.txt", size, "1") for i, size in enumerate(sizes)]
    source = Source(path="/none", bytes_per_fragment=60_000)
    units = list(plan_units(files, source, (), 100_000, {}, even_packs=True))
    assert [unit.size_bytes for unit in units] == sizes


@pytest.mark.parametrize("change", ["add", "remove", "edit", "grow"])
def test_one_changed_file_moves_few_even_packs(change: str) -> None:
    files = many_files(2000)
    before = {unit.digest for unit in even_packs(files)}
    moved = []
    for at in range(0, 2000, 41):
        moved.append(len({unit.digest for unit in even_packs(changed_at(files, at, change))} - before))
    assert min(moved) >= 1
    assert sum(moved) / len(moved) < 3, f"of {len(before)} packs {moved} were made anew"
    assert max(moved) <= 12


def test_even_packs_of_files_without_bytes_have_an_end() -> None:
    empty = [SourceFile(f"/none/{i}.txt", 0, "1") for i in range(3 * PACK_MAX_FILES)]
    units = even_packs(empty)
    assert [extent.file for unit in units for extent in unit.extents] == empty
    assert max(len(unit.extents) for unit in units) <= PACK_MAX_FILES
    assert min(len(unit.extents) for unit in units[:-1]) >= PACK_MAX_FILES // 2


def test_packs_hold_every_file_once_in_order_and_near_the_target() -> None:
    files = many_files(5000)
    units = packs(files)
    assert [extent.file for unit in units for extent in unit.extents] == files
    sizes = [unit.size_bytes for unit in units]
    assert max(sizes) <= 4 * PACK_TARGET_BYTES + (16 << 10)
    assert PACK_TARGET_BYTES / 2 < sum(sizes) / len(sizes) < 2 * PACK_TARGET_BYTES


@pytest.mark.parametrize("change", ["add", "remove", "edit", "grow"])
def test_one_changed_file_of_2000_moves_only_its_neighbours(change: str) -> None:
    files = many_files(2000)
    before = {unit.digest for unit in packs(files)}
    moved = []
    for at in range(0, 2000, 97):
        moved.append(len({unit.digest for unit in packs(changed_at(files, at, change))} - before))
    assert min(moved) >= 1
    assert max(moved) <= 4, f"of {len(before)} packs {moved} were made anew"


def test_files_without_bytes_still_fill_packs() -> None:
    empty = [SourceFile(f"/none/{i}.txt", 0, "1") for i in range(PACK_MAX_FILES + 10)]
    assert [len(unit.extents) for unit in packs(empty)] == [PACK_MAX_FILES, 10]


@pytest.mark.parametrize(
    ("count", "ending", "expected"),
    [(255, "jsonl", 0), (256, "jsonl", 65536), (300, "jsonl", 65536), (1, "txt", 65536), (0, "txt", 0)],
)
def test_packing_is_chosen_by_number_and_kind_of_files(count: int, ending: str, expected: int) -> None:
    files = [SourceFile(f"/none/{i}.{ending}", 100, "1") for i in range(count)]
    chosen, rest = choose_pack_below(iter(files), SOURCE)
    assert chosen == expected
    assert list(rest) == files
    set_by_user = Source(path="/none", pack_below_bytes=7)
    assert choose_pack_below(iter(files), set_by_user)[0] == 7


def test_known_files_are_not_opened() -> None:
    """None of these files exists, so opening one would give it the single unit of an unreadable file."""
    files = [SourceFile(f"/none/{i}.parquet", 10 * OPEN_ABOVE_BYTES, "1") for i in range(50)]
    reading = SOURCE.reading(())
    known = {
        file: tuple(Unit.of((Extent(file, start, end, start * 100, 0.5),), reading) for start, end in ((0, 3), (3, -1)))
        for file in files[:49]
    }
    units = list(plan_units(files, SOURCE, (), 0, known))
    assert units[:98] == list(itertools.chain.from_iterable(known.values()))
    assert units[98:] == [Unit.of((Extent(files[49]),), reading)]


def test_a_large_parquet_is_split_the_same_way_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "docs.parquet"
    texts = [random.Random(i).randbytes(600).hex() for i in range(5000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=500)
    file = source_file(path)
    assert file.size > OPEN_ABOVE_BYTES
    source = Source(path=str(path), rows_per_fragment=1000)
    units = list(plan_units([file], source, (), 0, {}))
    extents = [unit.extents[0] for unit in units]
    assert [(e.start, e.end, e.first_row) for e in extents] == [
        (0, 2, 0),
        (2, 4, 1000),
        (4, 6, 2000),
        (6, 8, 3000),
        (8, -1, 4000),
    ]
    assert sum(unit.size_bytes for unit in units) == pytest.approx(file.size, abs=len(units))
    path.unlink()
    assert list(plan_units([file], source, (), 0, {file: tuple(units)})) == units


def test_large_files_come_in_the_order_of_the_listing(tmp_path: Path) -> None:
    files = []
    for number in range(70):  # more than are opened at once
        path = tmp_path / f"{number:02d}.jsonl"
        path.write_text('{"text": "x"}\n' * 200)
        files.append(source_file(path))
    source = Source(path=str(tmp_path), bytes_per_fragment=1024)
    units = list(plan_units(files, source, (), 0, {}))
    assert [file for file, _ in itertools.groupby(unit.extents[0].file for unit in units)] == files
    first = [unit.extents[0] for unit in units if unit.extents[0].file == files[0]]
    assert [(e.start, e.end, e.first_row) for e in first] == [(0, 1024, 0), (1024, 2048, 74), (2048, -1, 147)]


def test_options_that_change_what_is_read_change_the_units() -> None:
    files = many_files(3)
    sources = [
        SOURCE,
        Source(path="/none", id="name"),
        Source(path="/none", text="{text}!"),
        Source(path="/none", rows_per_fragment=7),
        Source(path="/none", bytes_per_fragment=4096),
    ]
    digests = [next(plan_units(files, source, (), 0, {})).digest for source in sources]
    digests.append(next(plan_units(files, SOURCE, ("name",), 0, {})).digest)
    assert len(set(digests)) == len(digests)
    with_credentials = Source(path="/none", storage_options={"secret": "x"})
    assert next(plan_units(files, with_credentials, (), 0, {})).digest == digests[0]
