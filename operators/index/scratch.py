"""Files under construction on this machine's disk, and their way to storage, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from operators.storage import Location, StorageError, delete, move, stored_sha256, upload

_SCRATCH = "embedfleet-shard-"


def scratch_folder(local_dir: str | None) -> tempfile.TemporaryDirectory[str]:
    """A folder on this machine's disk that carries its process's number, so that the next one can clear up after it."""
    if local_dir:
        os.makedirs(local_dir, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-", dir=local_dir)


def sweep_scratch(local_dir: str | None) -> None:
    """Remove the folders of builders that were killed; gigabytes that nobody else would remove."""
    for folder in Path(local_dir or tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        pid = folder.name.removeprefix(_SCRATCH).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)


def put_whole(local: Path, location: Location, sha256: str) -> None:
    """Put a local file into place and read it back; what does not read back as it was is removed."""
    if move(local, location):
        return  # the very file that was hashed
    upload(local, location)
    if stored_sha256(location) != sha256:
        delete(location)
        raise StorageError(5, f"run again: {location} did not read back as it was written; it was removed")
