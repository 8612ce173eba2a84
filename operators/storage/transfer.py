"""Move large files between this machine's disk and a storage, whole, and know them by their hash.

A file of gigabytes is never held in memory, and never streamed into an open remote file: a stream that breaks off
leaves a truncated object behind (s3fs), a finished multipart upload does not.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from operators.storage.files import open_input, sync, write_into
from operators.storage.location import Location, tried_at

_PIECE_BYTES = 8 << 20
_PART_BYTES = 64 << 20  # of a multipart upload: at most 10,000 of them, so 640 GB


def sha256_of(file: Path) -> str:
    """The hash of a file on this machine."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stored_sha256(location: Location) -> str:
    """The hash of what a storage gives back."""
    digest = hashlib.sha256()
    with open_input(location) as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def upload(file: Path, location: Location) -> None:
    """Put a local file into the storage, at once: nobody ever sees half of it."""
    fs, path = location.fs, location.path
    if location.is_local:

        def fill(target: str) -> None:
            shutil.copyfile(file, target)

        write_into(location, fill)
        return
    parts = {"chunksize": _PART_BYTES} if location.is_s3 else {}
    tried_at(location, lambda: fs.put_file(os.fspath(file), path, **parts))


def upload_folder(folder: Path, location: Location) -> None:
    """Put all files below a local folder into the storage, each at once; others that are there stay."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        upload(file, location / file.relative_to(folder).as_posix())


def move(file: Path, location: Location) -> bool:
    """Rename a local file to a place on the same disk; False where it lies elsewhere and has to be uploaded."""
    if not location.is_local:
        return False
    target = Path(location.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.stat().st_dev != target.parent.stat().st_dev:
        return False
    sync(str(file))
    try:
        os.replace(file, target)
    except OSError as error:
        if error.errno == errno.EXDEV:  # bind mounts of one device
            return False
        raise
    sync(str(target.parent))
    return True


def download(location: Location, file: Path) -> None:
    """Fetch a file into this machine's disk; `file` appears only when it is complete."""
    fs, path = location.fs, location.path
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    try:
        tried_at(location, lambda: fs.get_file(path, os.fspath(partial)))
        os.replace(partial, file)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
