"""Files of a storage on this machine's disk, checked by their hash each time they are opened.

A file that is local already is used where it is. Others are fetched once into a folder, under their hash, so that
files of two indexes or snapshots never meet; several processes may share the folder.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from operators.errors import InputError
from operators.storage.location import Location
from operators.storage.transfer import download, sha256_of


def default_cache() -> str:
    """The folder that is used where none is named."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir(), f"embedfleet-cache-{os.getuid()}")


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder for fetched files."""

    folder: str

    @staticmethod
    def at(folder: str | None) -> Cache:
        """The cache in this folder, or in the default one."""
        return Cache(folder or default_cache())

    @property
    def scratch(self) -> Path:
        """Where copies in another form may lie; raises InputError where others may write into it."""
        self._make_private()
        return Path(self.folder)

    def _make_private(self) -> None:
        """Make the folder, for this user alone. Raises InputError where another could put files into it."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        found = os.lstat(self.folder)
        if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise InputError(
                f"give another cache_dir, or make it yours alone (chmod 700): {self.folder} is a link, another user's, "
                "or one that others may write into"
            )

    def fetch(self, location: Location, sha256: str, size: int) -> Path:
        """The file on this machine. Raises InputError where it is gone or not the one that was written."""
        if location.is_local:
            file = Path(location.path)
            _check(file, location, sha256, size)
            return file
        self._make_private()
        file = Path(self.folder) / sha256[:2] / sha256
        if file.exists() and file.stat().st_size == size and sha256_of(file) == sha256:
            return file
        try:
            download(location, file)
        except FileNotFoundError:
            raise _gone(location) from None
        try:
            _check(file, location, sha256, size)
        except InputError:
            file.unlink(missing_ok=True)
            raise
        return file


def _check(file: Path, location: Location, sha256: str, size: int) -> None:
    try:
        found_size = file.stat().st_size
    except FileNotFoundError:
        raise _gone(location) from None
    if found_size != size:
        raise InputError(f"restore {location} or make it again: it has {found_size:,} bytes, {size:,} were written")
    if sha256_of(file) != sha256:
        raise InputError(f"restore {location} or make it again: its content is not what was written")


def _gone(location: Location) -> InputError:
    return InputError(f"restore {location} or make it again: the file is gone")
