"""Where a file or folder lies: a URL with the options of its filesystem, small enough to travel to every worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import fsspec

from operators.errors import InputError
from operators.storage.faults import S3_CONFIG, hide, tried

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Location:
    """A file or folder; `url` is absolute, without a scheme for local paths. Its text never holds a secret."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False, compare=False)

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.url}{'' if self.url.endswith('/') else '/'}{name}", self.options)

    def __repr__(self) -> str:
        return f"Location({hide(self.url, self.options)!r})"

    def __str__(self) -> str:
        return hide(self.url, self.options)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The filesystem, which fsspec keeps one of per process and set of options."""
        return _filesystem(self.url, self.options)

    @property
    def path(self) -> str:
        """The path as its filesystem wants it."""
        return str(self.fs._strip_protocol(self.url))

    @property
    def is_local(self) -> bool:
        """Whether it is a file of this machine."""
        return "://" not in self.url

    @property
    def is_s3(self) -> bool:
        """Whether it is an object of S3, or of what speaks its protocol."""
        return self.url.startswith("s3://")


def locate(url: str, storage_options: Mapping[str, Any] | None = None) -> Location:
    """A location from what a user writes: `~`, relative paths, file:// or any fsspec URL.

    Raises InputError for a scheme that is unknown or whose package is not installed, for options it does not take, and
    for a password in a URL whose filesystem takes none there.
    """
    plain = url.removeprefix("file://") if url.startswith("file://") else url
    if not plain:
        raise InputError("give a path or URL: it is empty")
    if "://" not in plain:
        return Location(os.path.abspath(os.path.expanduser(plain)))
    scheme, _, rest = plain.partition("://")
    if scheme in ("s3", "s3a") and not rest.strip("/"):
        raise InputError(f"name a bucket: {url!r} has none")
    location = _without_password(
        Location(f"{'s3' if scheme == 's3a' else scheme}://{rest.rstrip('/')}", dict(storage_options or {}))
    )
    _filesystem(location.url, location.options)
    return location


def _without_password(location: Location) -> Location:
    """The same with user and password among the options: the URL is stored, in reports and as what an index is of."""
    scheme, _, rest = location.url.partition("://")
    authority, slash, path = rest.partition("/")
    user_info, at, host = authority.rpartition("@")
    if not at or ":" not in user_info:
        return location
    user, _, password = user_info.partition(":")
    try:
        taken = fsspec.get_filesystem_class(scheme)._get_kwargs_from_urls(location.url)
    except (ImportError, ValueError):  # said better where the filesystem is made
        return location
    if "password" not in taken:
        raise InputError(f"take the password out of {hide(location.url)} and give it in storage_options")
    given = {name: taken[name] for name in ("username", "password") if taken.get(name)}
    options = {**(given or {"username": user, "password": password}), **location.options}
    return Location(f"{scheme}://{host}{slash}{path}", options)


def _filesystem(url: str, options: Mapping[str, Any]) -> fsspec.AbstractFileSystem:
    if "://" not in url:
        return fsspec.filesystem("file")
    scheme = url.partition("://")[0]
    wanted = dict(options)
    if scheme == "s3":
        config = wanted.get("config_kwargs", {})
        retries = {**S3_CONFIG["retries"], **config.get("retries", {})}
        wanted["config_kwargs"] = {**S3_CONFIG, **config, "retries": retries}
        wanted = {"use_listings_cache": False, **wanted}
    try:
        # What a URL holds beside the path (a host, a user) is an option too.
        fs = fsspec.filesystem(scheme, **{**fsspec.get_filesystem_class(scheme)._get_kwargs_from_urls(url), **wanted})
    except ImportError as error:
        raise InputError(f"install the package for {scheme}:// paths: {hide(str(error), options)}") from None
    except (ValueError, TypeError, KeyError) as error:
        what = "the scheme of" if "rotocol not known" in str(error) else "storage_options for"
        raise InputError(f"check {what} {hide(url, options)!r}: {hide(str(error), options)}") from None
    if scheme == "s3":
        fs.retries = 1  # see operators.storage.faults
    return fs


def tried_at(location: Location, operation: Callable[[], Result]) -> Result:
    """Do an operation at a location as `operators.storage.faults.tried` does."""
    return tried(operation, location.url, location.options, location.fs)
