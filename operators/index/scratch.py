"""Files under construction on this machine's disk, and their way to storage, whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from operators.storage import Location, StorageError, delete, move, size_of, stored_sha256, upload

_SCRATCH = "embedfleet-shard-"


@contextmanager
def scratch_folder(local_dir: str | None) -> Iterator[str]:
    """A folder on this machine's disk, locked while its process lives, so that the next one can clear up after it."""
    if local_dir:
        os.makedirs(local_dir, exist_ok=True)
    folder, lock = _locked_folder(local_dir)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(local_dir: str | None) -> tuple[str, int]:
    while True:
        folder = tempfile.mkdtemp(prefix=_SCRATCH, dir=local_dir)
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            if _is_ours(lock) and os.path.isdir(folder):  # nobody swept it before it was locked
                return folder, lock
            os.close(lock)


def sweep_scratch(local_dir: str | None) -> None:
    """Remove the folders of builders that were killed; gigabytes that nobody else would remove.

    The lock tells, and no process's number: builders in containers share the disk, and not the numbers.
    """
    for folder in Path(local_dir or tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _is_ours(lock):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _is_ours(descriptor: int) -> bool:
    """Whether a folder could be locked, which it stays until the descriptor is closed or its process ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_stored(location: Location, sha256: str, size: int | None) -> bool:
    """Whether the storage has exactly this content there (`size`, where it is known, spares reading another's)."""
    try:
        return size in (None, size_of(location)) and stored_sha256(location) == sha256
    except FileNotFoundError:
        return False


def put_whole(local: Path, location: Location, sha256: str) -> None:
    """Put a local file into place and read it back; what does not read back as it was is removed.

    Names follow from content: a file that is there already and whole is left as it is, a damaged one is replaced.
    """
    if is_stored(location, sha256, local.stat().st_size):
        return
    if move(local, location):
        return  # the very file that was hashed
    upload(local, location)
    if stored_sha256(location) != sha256:
        delete(location)
        raise StorageError(5, f"run again: {location} did not read back as it was written; it was removed")
