"""Files and folders wherever fsspec reaches, with the few guarantees that the rest is built on.

- `write_whole` replaces a file at once: nobody ever reads half of it.
- `create_exclusive` makes a file only if there is none: of several writers exactly one wins.
- Listings are never served from a cache, and stream directory by directory.

Retries are botocore's (throttling, 5xx, connection faults, with back-off); what s3fs does not retry, such as a body that
breaks off, is tried again here, and only for operations that may be done twice.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from operators.errors import InputError

Result = TypeVar("Result")

_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 0.2
# One PUT may carry 5 GiB; more parts would make an upload that S3 cannot create exclusively (RGW, AWS).
_SINGLE_PUT_BYTES = 5 * 2**30 - 1
_STREAM_BLOCK_BYTES = 8 << 20
_SECRET_NAMES = re.compile(r"key|secret|token|password|passwd|credential|signature|connection_string", re.IGNORECASE)
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)")
_S3_DEFAULTS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {
        "retries": {"mode": "standard", "max_attempts": 10},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 64,
    },
}
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a listing; `version` is its etag, or its mtime and size where the storage has no etags."""

    url: str
    size: int
    modified: float | None
    version: str


@dataclass(frozen=True, slots=True)
class Location:
    """A file or folder; `url` is absolute, without a scheme for local paths. The options never show in its repr."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False, compare=False)

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.url.rstrip('/')}/{name}", self.options)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The filesystem, which fsspec keeps one of per process and set of options."""
        return _filesystem(self)

    @property
    def path(self) -> str:
        """The path as its filesystem wants it."""
        return str(self.fs._strip_protocol(self.url))


def locate(url: str, storage_options: Mapping[str, Any] | None = None) -> Location:
    """A location from what a user writes: `~`, relative paths, file:// or any fsspec URL.

    Raises InputError for a scheme that is unknown or whose package is not installed.
    """
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if "://" not in url:
        absolute = os.path.abspath(os.path.expanduser(url))
        return Location(absolute, dict(storage_options or {}))
    location = Location(url.rstrip("/"), dict(storage_options or {}))
    _filesystem(location)
    return location


def _filesystem(location: Location) -> fsspec.AbstractFileSystem:
    scheme = location.url.partition("://")[0] if "://" in location.url else "file"
    options = dict(location.options)
    if scheme in ("s3", "s3a"):
        config = {**_S3_DEFAULTS["config_kwargs"], **options.get("config_kwargs", {})}
        options = {**_S3_DEFAULTS, **options, "config_kwargs": config}
    try:
        return fsspec.filesystem(scheme, **options)
    except ValueError as error:
        raise InputError(f"check the scheme of {_hide(location.url)!r}: {error}") from None
    except ImportError as error:
        raise InputError(f"install the package for {scheme}:// paths: {error}") from None
    except TypeError as error:
        raise InputError(f"check storage_options for {scheme}:// paths: {_hide(str(error))}") from None


# --- single files ------------------------------------------------------------------------------------------------


def read_bytes(location: Location) -> bytes:
    """The whole content; raises FileNotFoundError where there is no such file."""
    return _tried(location, lambda: cast(bytes, location.fs.cat_file(location.path)))


def write_whole(location: Location, data: Any) -> None:
    """Replace a file with `data` (bytes or an Arrow buffer) at once, making its folders."""
    if isinstance(location.fs, LocalFileSystem):
        with _complete_temporary(location, data) as temporary:
            os.replace(temporary, location.path)
            _sync_folder(location)
        return
    payload = bytes(data)
    _tried(location, lambda: location.fs.pipe_file(location.path, payload))


def create_exclusive(location: Location, data: bytes) -> bool:
    """Make a file if there is none; True if it is ours, False if somebody else's is there."""
    if isinstance(location.fs, LocalFileSystem):
        with _complete_temporary(location, data) as temporary:
            try:
                os.link(temporary, location.path)
            except FileExistsError:
                return False
            _sync_folder(location)
            return True
    fs = location.fs
    try:
        _tried(location, lambda: fs.pipe_file(location.path, data, mode="create", **_single_put(fs)))
    except FileExistsError:
        pass
    except OSError as error:
        # RGW answers a lost race with EINVAL (through s3fs); it is one only if the object is really there.
        if error.errno != errno.EINVAL or not exists(location):
            raise
    else:
        return True
    # A first try may have been stored although its answer got lost; then the object that is in the way is our own.
    return read_bytes(location) == data


def _single_put(fs: fsspec.AbstractFileSystem) -> dict[str, int]:
    protocols = fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)
    return {"chunksize": _SINGLE_PUT_BYTES} if "s3" in protocols else {}


def exists(location: Location) -> bool:
    """Whether there is a file (or folder) now."""

    def look() -> bool:
        location.fs.invalidate_cache()
        return bool(location.fs.exists(location.path))

    return _tried(location, look)


def delete(location: Location) -> None:
    """Remove a file; one that is gone already is fine."""

    def remove() -> None:
        try:
            location.fs.rm_file(location.path)
        except FileNotFoundError:
            pass

    _tried(location, remove)


def open_input(location: Location) -> BinaryIO:
    """A seekable binary stream for reading."""
    if isinstance(location.fs, LocalFileSystem):
        return open(location.path, "rb")
    return _tried(
        location,
        lambda: cast(
            BinaryIO,
            location.fs.open(location.path, "rb", block_size=_STREAM_BLOCK_BYTES, cache_type="readahead"),
        ),
    )


# --- listings ----------------------------------------------------------------------------------------------------


def list_folder(location: Location) -> list[FileInfo]:
    """The files directly in a folder, by name, hidden ones left out; empty where there is no such folder."""
    return [info for info in _entries(location)[0] if not _is_hidden(info.url)]


def iter_files(location: Location) -> Iterator[FileInfo]:
    """The file itself, or every file below a folder or matching a glob, sorted within each folder.

    Names that begin with "." or "_" are left out. Memory is bounded by the largest folder.
    """
    if not _GLOB.search(location.url):
        info = _file_info(location)
        if info is not None:
            yield info
        else:
            yield from _walk(location)
        return
    base, pattern = _split_glob(location.url)
    matches = re.compile(_glob_regex(pattern)).fullmatch
    for info in _walk(Location(base, location.options), max_depth=None if "**" in pattern else pattern.count("/") + 1):
        if matches(info.url[len(base.rstrip("/")) + 1 :]):
            yield info


def _walk(folder: Location, max_depth: int | None = None) -> Iterator[FileInfo]:
    files, folders = _entries(folder)
    yield from (info for info in files if not _is_hidden(info.url))
    if max_depth is not None and max_depth <= 1:
        return
    for name in folders:
        if not _is_hidden(name):
            yield from _walk(folder / name, None if max_depth is None else max_depth - 1)


def _entries(folder: Location) -> tuple[list[FileInfo], list[str]]:
    """Files of a folder and names of its folders, both sorted."""

    def look() -> list[dict[str, Any]]:
        folder.fs.invalidate_cache()
        try:
            return cast(list[dict[str, Any]], folder.fs.ls(folder.path, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []

    here = folder.path.rstrip("/")
    entries = [entry for entry in _tried(folder, look) if entry["name"].rstrip("/") != here]
    files = [_info(folder, entry) for entry in entries if entry["type"] != "directory"]
    folders = [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory"]
    return sorted(files, key=lambda info: info.url), sorted(folders)


def _file_info(location: Location) -> FileInfo | None:
    def look() -> dict[str, Any] | None:
        location.fs.invalidate_cache()
        try:
            return cast(dict[str, Any], location.fs.info(location.path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    entry = _tried(location, look)
    if entry is None or entry["type"] == "directory":
        return None
    parent = Location(location.url.rsplit("/", 1)[0], location.options)
    return _info(parent, entry)


def _info(folder: Location, entry: dict[str, Any]) -> FileInfo:
    name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
    modified = entry.get("mtime") or entry.get("LastModified") or entry.get("created")
    seconds = modified.timestamp() if hasattr(modified, "timestamp") else modified
    etag = str(entry.get("ETag") or entry.get("etag") or "").strip('"')
    size = int(entry["size"] or 0)
    if not etag and isinstance(folder.fs, LocalFileSystem):
        # fsspec gives mtime as a float, which loses the last digits of the nanoseconds.
        etag = f"{os.stat(entry['name']).st_mtime_ns}-{size}"
    url = f"{folder.url.rstrip('/')}/{name}"
    return FileInfo(url, size, None if seconds is None else float(seconds), etag or f"{seconds}-{size}")


def _is_hidden(url: str) -> bool:
    return url.rsplit("/", 1)[-1][:1] in (".", "_")


def _split_glob(url: str) -> tuple[str, str]:
    """The folder above the first part with a wildcard, and the rest."""
    parts = url.split("/")
    first = next(i for i, part in enumerate(parts) if _GLOB.search(part))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _glob_regex(pattern: str) -> str:
    """`*` and `?` stay within a folder; `**/` is any number of folders."""
    pieces = []
    for part in pattern.split("/"):
        if part == "**":
            pieces.append("(?:[^/]+/)*")
        else:
            inner = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z")
            pieces.append(inner.replace(".*", "[^/]*").replace("(?<!\\).", "[^/]") + "/")
    return "".join(pieces).removesuffix("/").removesuffix("(?:[^/]+/)*") + ("(?:.*)" if pattern.endswith("**") else "")


# --- local files, faults, secrets ---------------------------------------------------------------------------------


class _complete_temporary:
    """A synced temporary file with `data` beside the target, gone on exit; a full disk leaves nothing behind."""

    def __init__(self, target: Location, data: Any) -> None:
        self._target, self._data, self._name = Path(target.path), data, ""

    def __enter__(self) -> str:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, self._name = tempfile.mkstemp(prefix=".writing-", dir=self._target.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(self._data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(self._name, 0o666 & ~_UMASK)
        except OSError as error:
            self.__exit__()
            if error.errno == errno.ENOSPC:
                message = f"free some space and run again: the disk is full at {self._target.parent}"
                raise OSError(errno.ENOSPC, message) from error
            raise
        return self._name

    def __exit__(self, *_: object) -> None:
        try:
            os.unlink(self._name)
        except FileNotFoundError:
            pass


def _read_umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


_UMASK = _read_umask()  # mkstemp makes files that only their owner reads; ours are as readable as any other


def _sync_folder(location: Location) -> None:
    descriptor = os.open(Path(location.path).parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tried(location: Location, operation: Callable[[], Result]) -> Result:
    """Do it, again after passing faults; faults of configuration become InputError, without any secret."""
    wait = _FIRST_WAIT_SECONDS
    for attempt in range(_ATTEMPTS):
        try:
            return operation()
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            advice = _advice(error, location)
            if advice is not None:
                raise InputError(advice) from None
            if not _is_passing(error):
                raise
            if attempt + 1 == _ATTEMPTS:
                if "EndpointConnectionError" in repr(error) or "Could not connect" in str(error):
                    message = f"check endpoint_url and the network: nothing answers for {_hide(location.url)}"
                    raise InputError(message) from None
                raise
        time.sleep(wait * (0.5 + random.random()))
        wait *= 2
    raise AssertionError("the last attempt returns or raises")


def _advice(error: Exception, location: Location) -> str | None:
    text = f"{type(error).__name__} {error}"
    where = _hide(location.url)
    if "NoCredentials" in text or "Unable to locate credentials" in text:
        return (
            f"give credentials for {where}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile, or "
            "storage_options); none were found"
        )
    if "InvalidAccessKeyId" in text or "SignatureDoesNotMatch" in text:
        return f"check the credentials for {where}: the storage does not know the key, or the secret is wrong"
    if isinstance(error, PermissionError) or "AccessDenied" in text or "Forbidden" in text:
        return f"get access to {where}: the storage refused it (permissions or credentials)"
    if "NoSuchBucket" in text or "bucket does not exist" in text:
        return f"check the bucket's name: there is none for {where}"
    return None


def _is_passing(error: Exception) -> bool:
    """Whether the same operation may succeed a moment later."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EINVAL, errno.EISDIR, errno.ENOTDIR):
        return False
    if isinstance(error, (OSError, TimeoutError, EOFError)):
        return True
    module = type(error).__module__
    return module.startswith(("botocore", "aiobotocore", "aiohttp", "urllib3", "http"))


def redact(value: Any) -> Any:
    """A copy of a config in which everything that looks like a secret is replaced by ***."""
    if isinstance(value, Mapping):
        return {
            name: "***" if _SECRET_NAMES.search(str(name)) and isinstance(inner, str) else redact(inner)
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact(inner) for inner in value]
    return _hide(value) if isinstance(value, str) else value


def _hide(text: str) -> str:
    return _USER_INFO.sub("***:***", text)
