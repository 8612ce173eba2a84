"""Hashes kept on storage and what they point out, against a dictionary, in runs after runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import InputError
from operators.storage import Location, delete, delete_folder, locate
from operators.store.id_check import Role, Use, cover, parts_of, suspects_in
from operators.store.id_hashes import (
    BUCKETS,
    Hashes,
    Segment,
    buckets_of,
    open_segment,
    read_segments,
    segment_file,
    write_segments,
)

# few values, so that they meet often, at the edges of the hash space and of its buckets
VALUES = [0, 1, 2**52 - 1, 2**52, 2**52 + 1, 2**63, 2**64 - 2**52, 2**64 - 1]
UNITS = st.lists(st.lists(st.sampled_from(VALUES), max_size=6), max_size=5)
ROLES: Sequence[Role] = ("stored", "checked", "pending")


def written(dataset: Location, units: Mapping[str, Sequence[int]], is_of_source: bool = True, most: int = 4) -> None:
    arrays = ((unit, [np.array(ids[:2], np.uint64), np.array(ids[2:], np.uint64)]) for unit, ids in units.items())
    list(write_segments(dataset, arrays, is_of_source, most))


def segments_of(dataset: Location) -> list[Segment]:
    return [segment for _, segment in read_segments(dataset) if segment is not None]


def found_in(dataset: Location, uses: Sequence[Use], at_least: int, most: int) -> set[tuple[str, int]]:
    """The units and hashes that all parts together point out; a part reports nothing of another."""
    found: set[tuple[str, int]] = set()
    for part in parts_of(uses, at_least, most):
        for row in suspects_in(dataset, uses, part).to_pylist():
            assert buckets_of(np.array([row["hash"]], np.uint64))[0] in part
            found.add((uses[row["segment"]].segment.pieces[row["piece"]].unit, row["hash"]))
    return found


def expected_of(units: Mapping[str, Sequence[int]], roles: Mapping[str, Role]) -> set[tuple[str, int]]:
    """Every place of a hash that comes twice, at least once in a unit that is checked."""
    every = [(unit, value) for unit in roles for value in units[unit]]
    twice = {v for v in VALUES if sum(value == v for _, value in every) > 1}
    checked = {value for unit, value in every if roles[unit] != "stored"}
    return {(unit, value) for unit, value in every if value in twice & checked}


@settings(max_examples=150)
@given(st.lists(UNITS, min_size=1, max_size=4), st.data())
def test_runs_after_runs_point_out_what_a_dictionary_does(runs: list[list[list[int]]], data: st.DataObject) -> None:
    """Each run adds units, drops others, and loses files; some were stored before there were hashes."""
    dataset = locate("memory://hashes")
    try:
        units: dict[str, list[int]] = {}
        for number, added in enumerate(runs):
            units |= {f"{number}-{i}": ids for i, ids in enumerate(added)}
            live = data.draw(st.lists(st.sampled_from(sorted(units)), unique=True) if units else st.just([]))
            roles = {unit: data.draw(st.sampled_from(ROLES)) for unit in live}
            for segment in segments_of(dataset):
                if data.draw(st.integers(0, 4)) == 0:
                    delete(segment_file(dataset, segment.key))
            _, missing = cover(segments_of(dataset), roles)
            of_source = {unit for unit in missing if roles[unit] == "pending" or data.draw(st.booleans())}
            written(dataset, {unit: units[unit] for unit in missing if unit in of_source})
            written(dataset, {unit: units[unit] for unit in missing if unit not in of_source}, is_of_source=False)
            uses, missing = cover(segments_of(dataset), roles)
            assert not missing
            found = found_in(
                dataset, uses, data.draw(st.sampled_from([1, 2, 16])), data.draw(st.sampled_from([4, 100]))
            )
            assert found == expected_of(units, roles)
    finally:
        delete_folder(dataset)


def test_pending_units_need_the_ids_of_all_their_rows(tmp_path: Path) -> None:
    dataset = Location(str(tmp_path))
    written(dataset, {"a": [1, 2]}, is_of_source=False)
    assert cover(segments_of(dataset), {"a": "pending"}) == ([], ["a"])
    assert cover(segments_of(dataset), {"a": "stored"})[1] == []


def test_a_large_unit_counts_only_with_all_its_pieces(tmp_path: Path) -> None:
    dataset = Location(str(tmp_path))
    written(dataset, {"a": VALUES + VALUES})
    pieces = [piece for segment in segments_of(dataset) for piece in segment.pieces]
    assert sorted((p.number, p.is_last) for p in pieces) == [(0, False), (1, False), (2, False), (3, True)]
    assert cover(segments_of(dataset), {"a": "pending"})[1] == []
    delete(segment_file(dataset, segments_of(dataset)[2].key))
    assert cover(segments_of(dataset), {"a": "pending"}) == ([], ["a"])


def test_the_same_units_make_the_same_file_whoever_writes_it(tmp_path: Path) -> None:
    for _ in range(2):
        written(Location(str(tmp_path)), {"a": [5, 1], "b": []}, most=100)
    assert len(list((tmp_path / "ids").iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"no parquet", None])
def test_a_damaged_file_counts_as_none(tmp_path: Path, damage: bytes | None) -> None:
    dataset = Location(str(tmp_path))
    written(dataset, {"a": [5, 1]})
    (path,) = (tmp_path / "ids").iterdir()
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    assert segments_of(dataset) == []
    written(dataset, {"a": [5, 1]})
    assert len(segments_of(dataset)) == 1


def test_damaged_hashes_are_told_from_others(tmp_path: Path) -> None:
    dataset = Location(str(tmp_path))
    written(dataset, {"a": [5, 1]})
    (path,) = (tmp_path / "ids").iterdir()
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    uses, _ = cover(segments_of(dataset), {"a": "checked"})
    with pytest.raises(InputError, match=f"remove {path} and run again: it is damaged"):
        suspects_in(dataset, uses, range(BUCKETS))


def test_a_part_of_the_hash_space_is_read_without_the_rest(tmp_path: Path) -> None:
    """A committed segment of 200,000 ids, a single new id: one row group of hashes is read."""
    dataset, rng = Location(str(tmp_path)), np.random.default_rng(0)
    every = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    list(write_segments(dataset, [("old", batches(every))], True))
    list(write_segments(dataset, [("new", [every[:1]])], True))
    uses, _ = cover(segments_of(dataset), {"old": "stored", "new": "pending"})
    (old,) = (use.segment for use in uses if not use.has_checked)
    assert len(old.groups) == BUCKETS // old.width > 4
    group = old.row_groups(int(buckets_of(every[:1])[0]), int(buckets_of(every[:1])[0]) + 1)
    assert len(group) == 1
    with open_segment(dataset, old) as reader:
        assert every[0] in reader.hashes(group)
        np.testing.assert_array_equal(reader.hashes(range(len(old.groups))), np.sort(every))
    assert found_in(dataset, uses, 1, 100) == {("old", int(every[0])), ("new", int(every[0]))}


def batches(hashes: Hashes) -> Iterator[Hashes]:
    for start in range(0, len(hashes), 7_000):
        yield hashes[start : start + 7_000]
