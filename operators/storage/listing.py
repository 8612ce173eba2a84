"""List folders and expand globs: never from a cache, and in bounded memory.

From S3 a listing streams, a thousand objects at a time in however many folders; elsewhere the largest folder is what it
takes.
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
_LAST_CHARACTER = "\U0010ffff"  # no name of an object begins with what comes after it


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


def _is_hidden(name: str) -> bool:
    return name[:1] in (".", "_")


def list_folder(location: Location, hidden: bool = False) -> list[FileInfo]:
    """The files directly in a folder, by name; empty where there is no such folder.

    Hidden ones (names that begin with "." or "_", such as files that a killed process was writing) only if asked for.
    """
    return [e.file for e in _entries(location) if e.file is not None and (hidden or not _is_hidden(e.name))]


def iter_files(location: Location) -> Iterator[FileInfo]:
    """The file itself, or every file below a folder or matching a glob, in the order of their paths.

    Names that begin with "." or "_" are left out, unless that part of the glob begins so as well. In a glob `*`, `?`
    and `[]` stay within a folder and `**` is any number of folders; a folder that matches stands for all below it.
    """
    only = file_info(location)
    if only is not None:
        yield only
        return
    parts = location.url.split("/")
    first = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), None)
    if first is None or exists(location):  # names may hold brackets, too
        yield from _matching(location, _EVERYTHING)
        return
    folder = Location("/".join(parts[:first]) or "/", location.options)
    yield from _matching(folder, _Place(tuple(parts[first:]), frozenset({0})))


@dataclass(frozen=True, slots=True)
class _Place:
    """How far a folder's path has come in a glob: the parts that a name in it may match."""

    pattern: tuple[str, ...]
    places: frozenset[int]

    def takes_file(self, name: str) -> bool:
        """Whether a file of this name in the folder matches."""
        return len(self.pattern) in self._after(name)

    def below(self, name: str) -> _Place | None:
        """The same for a folder in it; None where nothing below that can match."""
        after = self._after(name)
        if len(self.pattern) in after:
            return _EVERYTHING
        return _Place(self.pattern, after) if after else None

    def _after(self, name: str) -> frozenset[int]:
        here, after, is_hidden = set(self.places), set(), _is_hidden(name)
        for place, part in enumerate(self.pattern):
            if place not in here:
                continue
            if part == "**":
                here.add(place + 1)  # it may stand for no folder at all
                if not is_hidden:
                    after |= {place, place + 1} if place + 1 == len(self.pattern) else {place}
            elif fnmatch.fnmatchcase(name, part) and (not is_hidden or part[0] == name[0]):
                after.add(place + 1)
        return frozenset(after)


_EVERYTHING = _Place(("**",), frozenset({0}))


def _matching(folder: Location, place: _Place) -> Iterator[FileInfo]:
    """Files below `folder`, which has come to `place` in a glob."""
    if folder.is_s3:
        yield from _s3_matching(folder, place)
        return
    for entry in _entries(folder):
        if entry.file is not None:
            if place.takes_file(entry.name):
                yield entry.file
        elif (below := place.below(entry.name)) is not None:
            yield from _matching(Location(entry.url, folder.options), below)


def _s3_matching(folder: Location, place: _Place) -> Iterator[FileInfo]:
    """The same from a flat listing: a request for a thousand objects, in however many folders they lie.

    Where a page ends inside a folder in which nothing can match, the next begins behind that folder.
    """
    bucket, prefix = _bucket_and_prefix(folder)
    names: list[str] = []  # of the folder that the last object was in, from `folder` on
    places: list[_Place | None] = [place]  # of `folder` and of each of these
    request: dict[str, Any] = {}
    while True:
        page = _s3_page(folder, {"Bucket": bucket, "Prefix": prefix, **request})
        for item in page.get("Contents", []):
            *folders, name = item["Key"][len(prefix) :].split("/")
            _walk_to(folders, names, places)
            found = places[-1]
            if name and found is not None and found.takes_file(name):
                yield _s3_info(bucket, item)
        if not page.get("IsTruncated"):
            return
        request = {"ContinuationToken": page["NextContinuationToken"]}
        if places[-1] is None:
            request = {"StartAfter": f"{prefix}{'/'.join(names[: places.index(None)])}/{_LAST_CHARACTER}"}


def _walk_to(folders: list[str], names: list[str], places: list[_Place | None]) -> None:
    """Bring the names and places of a folder's path to those of another one's, keeping what both share."""
    if folders == names:
        return
    shared = next((i for i, (a, b) in enumerate(zip(folders, names, strict=False)) if a != b), None)
    shared = min(len(folders), len(names)) if shared is None else shared
    del names[shared:], places[shared + 1 :]
    for name in folders[shared:]:
        above = places[-1]
        names.append(name)
        places.append(above.below(name) if above is not None else None)


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
    bucket, prefix = _bucket_and_prefix(folder)
    request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
    while True:
        page = _s3_page(folder, request)
        entries = [(item["Key"], item) for item in page.get("Contents", []) if not item["Key"].endswith("/")]
        entries += [(item["Prefix"], None) for item in page.get("CommonPrefixes", [])]
        for path, item in sorted(entries, key=lambda entry: entry[0]):
            name = path[len(prefix) :].removesuffix("/")
            url = f"s3://{bucket}/{path.removesuffix('/')}"
            yield _Entry(name, url, _s3_info(bucket, item) if item else None)
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _bucket_and_prefix(folder: Location) -> tuple[str, str]:
    bucket, _, key = folder.url.removeprefix("s3://").partition("/")
    return bucket, f"{key}/" if key else ""


def _s3_page(folder: Location, request: Mapping[str, Any]) -> Mapping[str, Any]:
    fs = folder.fs
    return tried_at(folder, lambda: cast(Mapping[str, Any], fs.call_s3("list_objects_v2", **request)))


def _s3_info(bucket: str, item: Mapping[str, Any]) -> FileInfo:
    return _remote_info(f"s3://{bucket}/{item['Key']}", {**item, "size": item["Size"]})


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


def file_info(location: Location) -> FileInfo | None:
    """The file at a location, asked for by its name; None where there is a folder or nothing."""
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
