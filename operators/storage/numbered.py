"""Immutable files numbered from 1, of which the newest counts: created exclusively, and no number ever comes twice.

A number that is retired keeps an empty file, so that a run that was held up cannot create an old state as a new one.
An empty file after the newest state is a fence: whoever looked before it was there has to look again.
"""

from __future__ import annotations

from dataclasses import dataclass

from operators.storage.files import create_exclusive, write_whole
from operators.storage.listing import FileInfo, file_info, list_folder
from operators.storage.location import Location

_DIGITS = 8


@dataclass(frozen=True, slots=True)
class States:
    """What one listing of a folder of numbered files found."""

    present: dict[int, FileInfo]  # ascending; those that are not empty
    last: int  # the greatest number that is taken, empty or not; 0: none

    @property
    def numbers(self) -> list[int]:
        """Of those that are not empty, ascending."""
        return list(self.present)

    def superseded_before(self, moment: float) -> list[int]:
        """Numbers whose successor was there before `moment` (seconds since the epoch)."""
        numbers = self.numbers
        times = [self.present[number].modified for number in numbers[1:]]
        return [n for n, time in zip(numbers, times, strict=False) if time is not None and time < moment]


@dataclass(frozen=True, slots=True)
class Numbered:
    """A folder of numbered files with one ending (".json")."""

    folder: Location
    ending: str

    def file(self, number: int) -> Location:
        """Where a state lies."""
        return self.folder / f"{number:0{_DIGITS}d}{self.ending}"

    def look(self) -> States:
        """What is there now."""
        found = {}
        for info in list_folder(self.folder):
            stem = info.name.removesuffix(self.ending)
            if info.name.endswith(self.ending) and len(stem) == _DIGITS and stem.isdigit():
                found[int(stem)] = info
        present = {number: found[number] for number in sorted(found) if found[number].size}
        return States(present, max(found, default=0))

    def holds(self, number: int) -> bool:
        """Whether a state is there and not empty, asked for by its name: a listing may lag behind."""
        info = file_info(self.file(number))
        return info is not None and info.size > 0

    def create(self, number: int, data: bytes) -> bool:
        """Make a state; False where the number is taken."""
        return create_exclusive(self.file(number), data)

    def fence(self, number: int) -> bool:
        """Take a number so that nobody can use it; False where it is taken."""
        return create_exclusive(self.file(number), b"")

    def retire(self, number: int) -> None:
        """Empty a state; its number stays taken."""
        write_whole(self.file(number), b"")
