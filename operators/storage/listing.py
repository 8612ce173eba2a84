"""List folders and expand globs: never from a cache, and in bounded memory.

From S3 a listing streams a page at a time; elsewhere the largest folder is what it takes.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from operators.storage.files import exists
from operators.storage.location import Location, tried_at

_MODIFIED_NAMES = ("LastModified", "last_modified", "mtime", "updated", "created")  # S3, Azure, SFTP, GCS, memory


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a listing; `version` is its etag, or its mtime and size where the storage has no etags."""

    url: str
    size: int
    modified: float | None  # seconds since the epoch
    version: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    url: str
    file: FileInfo | None  # None for a folder

    @property
    def is_hidden(self) -> bool:
        return self.name[:1] in (".", "_")


def list_folder(location: Location, hidden: bool = False) -> list[FileInfo]:
    """The files directly in a folder, by name; empty where there is no such folder.

    Hidden ones (names that begin with "." or "_", such as files that a killed process was writing) only if asked for.
    """
    return [e.file for e in _entries(location) if e.file is not None and (hidden or not e.is_hidden)]


def iter_files(location: Location) -> Iterator[FileInfo]:
    """The file itself, or every file below a folder or matching a glob, in the order of their paths.

    Names that begin with "." or "_" are left out, unless that part of the glob begins so as well. In a glob `*`, `?`
    and `[]` stay within a folder and `**` is any number of folders; a folder that matches stands for all below it.
    """
    only = _file_at(location)
    if only is not None:
        yield only
        return
    parts = location.url.split("/")
    first = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), None)
    if first is None or exists(location):  # names may hold brackets, too
        yield from _matching(location, ["**"], frozenset({0}))
        return
    folder = Location("/".join(parts[:first]) or "/", location.options)
    yield from _matching(folder, parts[first:], frozenset({0}))


def _matching(folder: Location, pattern: list[str], places: frozenset[int]) -> Iterator[FileInfo]:
    """Files below `folder`; `places` are the parts of the pattern that a name here may match."""
    for entry in _entries(folder):
        after = _places_after(entry, pattern, places)
        if entry.file is not None:
            if len(pattern) in after:
                yield entry.file
        elif len(pattern) in after:
            yield from _matching(Location(entry.url, folder.options), ["**"], frozenset({0}))
        elif after:
            yield from _matching(Location(entry.url, folder.options), pattern, after)


def _places_after(entry: _Entry, pattern: list[str], places: frozenset[int]) -> frozenset[int]:
    here, after = set(places), set()
    for place, part in enumerate(pattern):
        if place not in here:
            continue
        if part == "**":
            here.add(place + 1)  # it may stand for no folder at all
            if not entry.is_hidden:
                after |= {place, place + 1} if place + 1 == len(pattern) else {place}
        elif fnmatch.fnmatchcase(entry.name, part) and (not entry.is_hidden or part[0] == entry.name[0]):
            after.add(place + 1)
    return frozenset(after)


def _entries(folder: Location) -> Iterator[_Entry]:
    """What is directly in a folder, in the order that S3 lists in: by path, that of a folder ending in a slash."""
    if folder.is_s3:
        yield from _s3_entries(folder)
        return
    found = _local_entries(folder) if folder.is_local else _other_entries(folder)
    yield from sorted(found, key=lambda entry: entry.name if entry.file else f"{entry.name}/")


def _local_entries(folder: Location) -> list[_Entry]:
    def look() -> list[_Entry]:
        entries = []
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder.url) as listing:
            for item in listing:
                url = os.path.join(folder.url, item.name)
                with suppress(FileNotFoundError):  # gone again meanwhile, or a link to nothing
                    if item.is_file():
                        entries.append(_Entry(item.name, url, _local_info(url, item.stat())))
                    elif item.is_dir() and not _leads_back(item):
                        entries.append(_Entry(item.name, url, None))
        return entries

    return tried_at(folder, look)


def _leads_back(item: os.DirEntry[str]) -> bool:
    """Whether a link leads to a folder that it lies in, so that following it would never end."""
    if not item.is_symlink():
        return False
    target = os.path.realpath(item.path)
    return os.path.commonpath([target, os.path.realpath(os.path.dirname(item.path))]) == target


def _local_info(url: str, stat: os.stat_result) -> FileInfo:
    return FileInfo(url, stat.st_size, stat.st_mtime, f"{stat.st_mtime_ns}-{stat.st_size}")


def _s3_entries(folder: Location) -> Iterator[_Entry]:
    """Page by page, so that a folder of millions of objects takes the memory of a thousand."""
    bucket, _, key = folder.url.removeprefix("s3://").partition("/")
    prefix = f"{key}/" if key else ""
    request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
    while True:
        page = tried_at(folder, lambda: folder.fs.call_s3("list_objects_v2", **request))
        entries = [(item["Key"], item) for item in page.get("Contents", []) if not item["Key"].endswith("/")]
        entries += [(item["Prefix"], None) for item in page.get("CommonPrefixes", [])]
        for path, item in sorted(entries, key=lambda entry: entry[0]):
            name = path[len(prefix) :].removesuffix("/")
            url = f"s3://{bucket}/{path.removesuffix('/')}"
            yield _Entry(name, url, _remote_info(url, {**item, "size": item["Size"]}) if item else None)
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _other_entries(folder: Location) -> list[_Entry]:
    fs, path = folder.fs, folder.path.rstrip("/")

    def look() -> list[dict[str, Any]]:
        fs.invalidate_cache()
        with suppress(FileNotFoundError, NotADirectoryError):
            return cast(list[dict[str, Any]], fs.ls(path, detail=True))
        return []

    entries = []
    for item in tried_at(folder, look):
        name = item["name"].rstrip("/").rsplit("/", 1)[-1]
        url = (folder / name).url
        if item["name"].rstrip("/") != path:
            entries.append(_Entry(name, url, None if item["type"] == "directory" else _remote_info(url, item)))
    return entries


def _file_at(location: Location) -> FileInfo | None:
    """The file at a location; None where there is a folder or nothing."""
    fs, path = location.fs, location.path

    def look() -> FileInfo | None:
        if location.is_local:
            return _local_info(location.url, os.stat(path)) if os.path.isfile(path) else None
        fs.invalidate_cache()
        info = fs.info(path)
        return None if info["type"] == "directory" else _remote_info(location.url, info)

    with suppress(FileNotFoundError):
        return tried_at(location, look)
    return None


def _remote_info(url: str, info: Mapping[str, Any]) -> FileInfo:
    modified: Any = next((info[name] for name in _MODIFIED_NAMES if info.get(name)), None)
    seconds = modified.timestamp() if hasattr(modified, "timestamp") else modified
    seconds = float(seconds) if isinstance(seconds, (int, float)) else None
    size = int(info["size"] or 0)
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    return FileInfo(url, size, seconds, etag or f"{seconds}-{size}")
