"""Which ids of some units come more than once in a dataset, by the hashes kept beside the fragments.

`cover` finds the segments that hold the units' hashes; `suspects_in` compares one part of the hash space, reading each
hash of it once: those of the units to be checked are held and sorted, those of other units pass by a segment at a time,
and only row groups that a checked hash falls into. So memory follows from the checked ids of a part alone. Equal
hashes are suspects only: among a billion ids two different ones meet with a probability of 3 %, so the ids decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.corpus.duplicates import common_hashes, is_among, repeated_hashes
from operators.storage import Location
from operators.store.id_hashes import BUCKETS, Hashes, Segment, buckets_of, open_segment

# checked: its ids must stand nowhere else; pending: checked, and none of its rows is embedded yet
Role = Literal["stored", "checked", "pending"]
_ABSENT, _STORED, _CHECKED = 0, 1, 2
# Checked ids compared at once: some 30 bytes each at the peak.
IDS_PER_PART = 4 << 20
SUSPECTS = pa.schema([("segment", pa.int32()), ("piece", pa.uint16()), ("hash", pa.uint64())])


@dataclass(frozen=True, slots=True)
class Use:
    """A segment, and what each of its pieces is in a check; pieces that are read elsewhere or gone are absent."""

    segment: Segment
    roles: bytes  # one a piece

    @property
    def has_checked(self) -> bool:
        """Whether ids of it are checked."""
        return _CHECKED in self.roles

    @property
    def is_uniform(self) -> bool:
        """Whether all its pieces are checked, so that none has to be told from another."""
        return self.roles.count(_CHECKED) == len(self.roles)


def cover(segments: Iterable[Segment], units: Mapping[str, Role]) -> tuple[list[Use], list[str]]:
    """The segments to read for these units, each piece in one of them, and the units that no segments cover.

    Pending units need the ids of all their rows; of others those that were embedded will do.
    """
    ordered = sorted(segments, key=lambda segment: (-sum(p.unit in units for p in segment.pieces), segment.key))
    places: dict[tuple[str, bool], dict[int, tuple[int, int, bool]]] = {}
    for number, segment in enumerate(ordered):
        for place, piece in enumerate(segment.pieces):
            if piece.unit in units and (segment.is_of_source or units[piece.unit] != "pending"):
                found = places.setdefault((piece.unit, segment.is_of_source), {})
                found.setdefault(piece.number, (number, place, piece.is_last))
    roles = [bytearray(len(segment.pieces)) for segment in ordered]
    missing = []
    for unit, role in units.items():
        chosen = next((p for of_source in (True, False) if _is_whole(p := places.get((unit, of_source), {}))), None)
        if chosen is None:
            missing.append(unit)
            continue
        for number, place, _ in chosen.values():
            roles[number][place] = _STORED if role == "stored" else _CHECKED
    uses = [Use(segment, bytes(of)) for segment, of in zip(ordered, roles, strict=True) if any(of)]
    return uses, missing


def _is_whole(pieces: Mapping[int, tuple[int, int, bool]]) -> bool:
    return bool(pieces) and all(number in pieces for number in range(len(pieces))) and pieces[len(pieces) - 1][2]


def parts_of(uses: Sequence[Use], at_least: int, ids_per_part: int = IDS_PER_PART) -> list[range]:
    """The hash space as ranges of buckets: some `at_least` parts, of at most about `ids_per_part` checked ids each."""
    checked = sum(use.segment.num_ids for use in uses if use.has_checked)
    wanted = max(at_least, -(-checked // ids_per_part))
    width = BUCKETS
    while width > 1 and width * wanted > BUCKETS:
        width //= 2
    return [range(first, first + width) for first in range(0, BUCKETS, width)]


def suspects_in(dataset: Location, uses: Sequence[Use], part: range) -> pa.Table:
    """Where the checked hashes of a part of the hash space stand that also stand elsewhere (`SUSPECTS`).

    `segment` is the place in `uses`; rows of stored pieces are those that have the same hash as a checked one.
    """
    held: list[Hashes] = []
    passing: list[Hashes] = []
    for use in uses:
        if use.has_checked:
            roles, hashes = _with_roles(dataset, use, part)
            held.append(hashes if roles is None else hashes[roles == _CHECKED])
            if roles is not None:
                passing.append(hashes[roles == _STORED])
    checked = np.concatenate([np.empty(0, np.uint64), *held])
    held.clear()
    checked.sort()
    found = [repeated_hashes(checked), *(common_hashes(hashes, checked) for hashes in passing)]
    buckets = _distinct_buckets(checked)
    for use in uses:
        if not use.has_checked and (groups := _groups_with(use.segment, buckets, part)):
            found.append(_common_with(dataset, use, checked, groups))
    suspects = np.unique(np.concatenate(found))
    del checked
    buckets = _distinct_buckets(suspects)
    return pa.concat_tables(
        [SUSPECTS.empty_table(), *(_places(dataset, use, n, suspects, buckets, part) for n, use in enumerate(uses))]
    )


def _with_roles(dataset: Location, use: Use, part: range) -> tuple[NDArray[np.uint8] | None, Hashes]:
    """The hashes of a segment in a part with the role of each, None where all are checked."""
    groups = use.segment.row_groups(part.start, part.stop)
    with open_segment(dataset, use.segment) as reader:
        hashes = reader.hashes(groups)
        inside = _inside(hashes, part)
        if use.is_uniform:
            return None, hashes[inside]
        return np.frombuffer(use.roles, np.uint8)[reader.pieces(groups)[inside]], hashes[inside]


def _common_with(dataset: Location, use: Use, checked: Hashes, groups: Sequence[int]) -> Hashes:
    """The checked hashes that a stored piece has too; a file that changed leaves pieces of the same ids behind."""
    with open_segment(dataset, use.segment) as reader:
        hashes = reader.hashes(groups)
        common = common_hashes(hashes, checked)
        if not len(common) or _ABSENT not in use.roles:
            return common
        roles = np.frombuffer(use.roles, np.uint8)[reader.pieces(groups)]
        return common_hashes(hashes[roles == _STORED], checked)


def _places(
    dataset: Location, use: Use, number: int, suspects: Hashes, buckets: NDArray[np.int64], part: range
) -> pa.Table:
    """Where suspects (ascending, in these buckets) stand in a segment."""
    groups = _groups_with(use.segment, buckets, part)
    if not groups:
        return SUSPECTS.empty_table()
    with open_segment(dataset, use.segment) as reader:
        hashes = reader.hashes(groups)
        is_suspect = is_among(hashes, suspects)
        if not is_suspect.any():
            return SUSPECTS.empty_table()
        pieces, hashes = reader.pieces(groups)[is_suspect], hashes[is_suspect]
    is_used = np.frombuffer(use.roles, np.uint8)[pieces] != _ABSENT
    columns = [np.full(int(is_used.sum()), number, np.int32), pieces[is_used], hashes[is_used]]
    return pa.table([pa.array(column) for column in columns], schema=SUSPECTS)


def _inside(hashes: Hashes, part: range) -> slice:
    """Where the hashes (ascending) of these buckets stand: a row group may be wider than a part."""
    low, high = np.searchsorted(buckets_of(hashes), [part.start, part.stop])
    return slice(int(low), int(high))


def _distinct_buckets(hashes: Hashes) -> NDArray[np.int64]:
    buckets = buckets_of(hashes)
    return buckets[np.diff(buckets, prepend=-1) > 0]


def _groups_with(segment: Segment, buckets: NDArray[np.int64], part: range) -> list[int]:
    """The row groups of a part that hold hashes of some of these buckets."""
    groups = segment.row_groups(part.start, part.stop)
    held = np.array(segment.groups[groups.start : groups.stop], np.int64)
    return (groups.start + np.flatnonzero(np.isin(held, buckets // segment.width))).tolist()
