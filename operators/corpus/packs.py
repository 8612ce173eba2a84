"""Small files side by side in packs, one read task each.

Who shares with whom follows from the paths and sizes alone, and a pack ends where a hash of a path is low, so that a
new or changed file moves only its neighbours and not every pack after it. Memory: the files of one pack.

- *even*: of the files at which a pack would be between half full and full, it ends at the one that hashes lowest. A
  change before it moves the window, but hardly the lowest hash in it: 1.2 packs a change on average.
- else: it ends at any file that hashes below its share of the target, or at four times the target. Sizes are spread as
  waiting times are; kept for outputs and trainings that were begun with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from operators.work.fragment import SourceFile

PACK_MAX_FILES = 4096
LEAST_FULL = 0.5  # of an even pack, but for the last one


class Packer:
    """Takes files in the order of the listing and gives packs of them back."""

    def __init__(self, target_bytes: Callable[[SourceFile], int], even: bool) -> None:
        """`target_bytes`: of the pack that a file is in."""
        self._target_bytes = target_bytes
        self._even = even
        self._files: list[SourceFile] = []
        self._size = 0
        self._best, self._lowest = 0, 1.0  # of an even pack: how many files it has, ending at the lowest hash so far

    def add(self, file: SourceFile) -> Iterator[list[SourceFile]]:
        """The packs that are complete now that this file has come."""
        if not self._even:
            self._files.append(file)
            self._size += file.size
            if self._ends_at(file):
                yield self._take()
            return
        waiting = [file]
        while waiting:
            file = waiting.pop()
            if self._files and self._overflows(file):
                end, files = self._best, self._take()
                waiting += [file, *reversed(files[end:])]  # what stands behind the end of a pack begins the next one
                yield files[:end]
            else:
                self._put(file)

    def rest(self) -> Iterator[list[SourceFile]]:
        """The last pack, where there is one."""
        if self._files:
            yield self._take()

    def _take(self) -> list[SourceFile]:
        pack, self._files = self._files, []
        self._size, self._best, self._lowest = 0, 0, 1.0
        return pack

    def _ends_at(self, file: SourceFile) -> bool:
        target_bytes = self._target_bytes(file)
        if _draw(file) < file.size / target_bytes:
            return True
        return len(self._files) >= PACK_MAX_FILES or self._size >= 4 * target_bytes

    def _overflows(self, file: SourceFile) -> bool:
        return self._size + file.size > self._target_bytes(self._files[0]) or len(self._files) >= PACK_MAX_FILES

    def _put(self, file: SourceFile) -> None:
        self._files.append(file)
        self._size += file.size
        is_filling = max(self._size / self._target_bytes(self._files[0]), len(self._files) / PACK_MAX_FILES)
        if is_filling < LEAST_FULL:
            self._best = len(self._files)  # where the next file is too large to share
        elif (draw := _draw(file)) < self._lowest:
            self._best, self._lowest = len(self._files), draw


def _draw(file: SourceFile) -> float:
    """A number in [0, 1) that a path has for good."""
    return int.from_bytes(hashlib.blake2b(file.path.encode(), digest_size=4).digest(), "big") / 2**32
