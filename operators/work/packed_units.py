"""The units of a large source in little memory: some 60 bytes a file instead of 500 as objects."""

from __future__ import annotations

import bisect
import marshal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import pyarrow as pa

from operators.work.fragment import Extent, SourceFile, Unit

_BLOCK_EXTENTS = 1024  # encoded together, for paths and versions of neighbours are much alike


class PackedUnits(Sequence[Unit]):
    """Units in their order, made anew whenever they are asked for, which takes 3 us a file."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._blocks: list[tuple[bytes, int]] = []  # compressed, with the size of what they hold
        self._ends: list[int] = []  # number of the unit after each block
        self._opened: tuple[int, list[Unit]] = (-1, [])  # the block asked for last, for those who go on from there
        block: list[Any] = []
        held = length = 0
        for unit in units:
            block.append((unit.digest, [_facts(extent) for extent in unit.extents]))
            held, length = held + len(unit.extents), length + 1
            if held >= _BLOCK_EXTENTS:
                self._append(block, length)
                block, held = [], 0
        if block:
            self._append(block, length)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Unit]:
        for number in range(len(self._blocks)):
            yield from self._block(number)

    @overload
    def __getitem__(self, place: int) -> Unit: ...
    @overload
    def __getitem__(self, place: slice) -> list[Unit]: ...
    def __getitem__(self, place: int | slice) -> Unit | list[Unit]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"there are {len(self)} units, no number {place}")
        place = int(place) % len(self)
        number = bisect.bisect_right(self._ends, place)
        return self._block(number)[place - (self._ends[number - 1] if number else 0)]

    def _append(self, block: list[Any], length: int) -> None:
        payload = marshal.dumps(block)  # plain values, read back by this process alone
        self._blocks.append((pa.compress(payload, codec="zstd", asbytes=True), len(payload)))
        self._ends.append(length)

    def _block(self, number: int) -> list[Unit]:
        if self._opened[0] == number:
            return self._opened[1]
        payload, size = self._blocks[number]
        block = marshal.loads(pa.decompress(payload, decompressed_size=size, codec="zstd", asbytes=True))
        units = [Unit(digest, tuple(_extent(*facts) for facts in extents)) for digest, extents in block]
        self._opened = (number, units)
        return units


def _facts(extent: Extent) -> tuple[Any, ...]:
    file = extent.file
    return file.path, file.size, file.version, extent.start, extent.end, extent.first_row, extent.share


def _extent(path: str, size: int, version: str, start: int, end: int, first_row: int, share: float) -> Extent:
    return Extent(SourceFile(path, size, version), start, end, first_row, share)
