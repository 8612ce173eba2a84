"""Read and write single files, whole or not at all.

Local files go through the operating system and S3 through s3fs; what the two cannot promise alone is added here. Other
filesystems (GCS, Azure, memory) are used as fsspec offers them.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

from operators.storage.faults import server_code
from operators.storage.location import Location, tried_at

# CompleteMultipartUpload ignores If-None-Match on RGW 16.2, so what is created exclusively is one PUT (at most 5 GiB);
# s3fs takes one up to twice the chunk size.
_SINGLE_PUT_BYTES = 5 * 2**30
_PART_BYTES, _PARTS_AT_ONCE = 32 << 20, 4  # uploads above two parts; memory: the parts at once
_STREAM_BLOCK_BYTES = 8 << 20
_KEYS_A_REQUEST = 1000  # the most that S3 deletes at once
_WRITING = ".writing-"  # begins the name of a file that is not complete yet


def read_bytes(location: Location) -> bytes:
    """The whole content; raises FileNotFoundError where there is no such file."""
    fs, path = location.fs, location.path
    return tried_at(location, lambda: cast(bytes, fs.cat_file(path)))


def write_whole(location: Location, data: Any) -> None:
    """Replace a file with `data` (bytes or an Arrow buffer) at once, making its folders."""
    fs, path = location.fs, location.path
    if location.is_local:
        write_into(location, lambda written: _write_bytes(written, data))
        return
    payload = bytes(data)
    parts = {"chunksize": _PART_BYTES, "max_concurrency": _PARTS_AT_ONCE} if location.is_s3 else {}
    tried_at(location, lambda: fs.pipe_file(path, payload, **parts))


def write_into(location: Location, fill: Callable[[str], None]) -> None:
    """Replace a local file at once by what `fill` writes to the path that it is given."""
    path = location.path

    def replace() -> None:
        with _complete_file_beside(path, fill) as written:
            os.replace(written, path)
            _sync_folder(path)

    tried_at(location, replace)


def create_exclusive(location: Location, data: bytes) -> bool:
    """Make a file if there is none; True if it is ours, False if somebody else's is there, however alike."""
    writer = uuid.uuid4().hex  # one for all tries, so that we know our own object from another's
    return tried_at(location, lambda: _create(location, data, writer))


def _create(location: Location, data: bytes, writer: str) -> bool:
    fs, path = location.fs, location.path
    if location.is_local:
        with _complete_file_beside(path, lambda written: _write_bytes(written, data)) as written:
            try:
                os.link(written, path)
            except FileExistsError:
                # Over NFS the answer to a link that was made may get lost; a second name tells.
                return os.stat(written).st_nlink == 2
            _sync_folder(path)
            return True
    if not location.is_s3:
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True
    try:
        fs.pipe_file(path, data, mode="create", chunksize=_SINGLE_PUT_BYTES, Metadata={"writer": writer})
    except OSError as error:
        # RGW answers a lost race with an EINVAL (through s3fs) as it does other mistakes: the server's code tells.
        if not isinstance(error, FileExistsError) and server_code(error) not in ("PreconditionFailed", "412"):
            raise
        # A first try may have been stored although its answer got lost; then the object in the way is our own.
        bucket, key, _ = fs.split_path(path)
        stored = fs.call_s3("head_object", Bucket=bucket, Key=key)
        return bool(stored["Metadata"].get("writer") == writer)
    return True


def exists(location: Location) -> bool:
    """Whether there is a file (or folder) now."""
    fs, path = location.fs, location.path

    def look() -> bool:
        fs.invalidate_cache()
        return bool(fs.exists(path))

    return tried_at(location, look)


def size_of(location: Location) -> int:
    """Bytes of a file; raises FileNotFoundError where there is none."""
    fs, path = location.fs, location.path

    def look() -> int:
        fs.invalidate_cache()
        return int(fs.size(path))

    return tried_at(location, look)


def delete(location: Location) -> None:
    """Remove a file; one that is gone already is fine."""
    fs, path = location.fs, location.path

    def remove() -> None:
        with suppress(FileNotFoundError):
            os.remove(path) if location.is_local else fs.rm_file(path)

    tried_at(location, remove)


def delete_all(locations: Sequence[Location], guard: Callable[[], None] = lambda: None) -> None:
    """Remove files of one filesystem, S3's a thousand a request; those that are gone already are fine.

    `guard` is asked right before each request, a repeated one too; what it raises ends the removal.
    """
    if not locations:
        return
    first = locations[0]
    if first.is_s3:
        for start in range(0, len(locations), _KEYS_A_REQUEST):
            _delete_keys(locations[start : start + _KEYS_A_REQUEST], guard)
        return
    for location in locations:
        guard()
        delete(location)


def _delete_keys(locations: Sequence[Location], guard: Callable[[], None]) -> None:
    fs, paths = locations[0].fs, [location.path for location in locations]
    bucket = fs.split_path(paths[0])[0]

    def remove() -> None:
        objects = [{"Key": fs.split_path(path)[1]} for path in paths]
        guard()
        answer = fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
        errors = [error for error in answer.get("Errors", []) if error.get("Code") != "NoSuchKey"]
        if errors:
            raise _refused(errors[0])

    tried_at(locations[0], remove)


def _refused(error: Mapping[str, Any]) -> OSError:
    """What one key of a request was refused for, as the same answer to a request of its own would be raised."""
    number = errno.EACCES if error.get("Code") == "AccessDenied" else errno.EIO
    fault = OSError(number, f"{error.get('Key')}: {error.get('Code')} {error.get('Message', '')}")
    fault.__cause__ = _Answer(error)
    return fault


class _Answer(Exception):
    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("Code")))
        self.response = {"Error": dict(error), "ResponseMetadata": {"HTTPStatusCode": 0}}


def delete_folder(location: Location) -> None:
    """Remove a folder with all that is in it; one that is gone already is fine."""
    fs, path = location.fs, location.path

    def remove() -> None:
        fs.invalidate_cache()
        with suppress(FileNotFoundError):
            shutil.rmtree(path) if location.is_local else fs.rm(path, recursive=True)

    tried_at(location, remove)


def open_input(location: Location) -> BinaryIO:
    """A seekable binary stream for reading; faults in the middle are tried again like those at the start."""
    fs, path = location.fs, location.path
    if location.is_local:
        return tried_at(location, lambda: open(path, "rb"))
    stream = tried_at(location, lambda: fs.open(path, "rb", block_size=_STREAM_BLOCK_BYTES, cache_type="readahead"))
    return io.BufferedReader(_PatientStream(location, stream), 1 << 16)


class _PatientStream(io.RawIOBase):
    """A remote file of which each read is tried again, from where it began."""

    def __init__(self, location: Location, stream: BinaryIO) -> None:
        self._location, self._stream, self._at = location, stream, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._stream.seek(self._at)
        self._at = self._stream.seek(offset, whence)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        def read() -> bytes:
            self._stream.seek(self._at)
            return self._stream.read(len(buffer))

        piece = tried_at(self._location, read)
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


@contextmanager
def _complete_file_beside(path: str, fill: Callable[[str], None]) -> Iterator[str]:
    """A synced file that `fill` wrote in the folder of `path`, which is made; gone at the end, also on a full disk."""
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", error.filename) from None
    written = os.path.join(folder, f"{_WRITING}{uuid.uuid4().hex}")
    try:
        fill(written)
        sync(written)
        yield written
    finally:
        with suppress(FileNotFoundError):
            os.unlink(written)


def _write_bytes(path: str, data: Any) -> None:
    with open(path, "xb") as stream:
        stream.write(data)


def _sync_folder(path: str) -> None:
    sync(os.path.dirname(path))


def sync(path: str) -> None:
    """Wait until a local file or folder is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
