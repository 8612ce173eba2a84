"""Fetch the images that rows only name, without letting a row decide whom this machine talks to, or with what keys.

A row is data. It may name files where the source itself lies, on the object stores that `_STORES` lists, and on the
web. The source's storage options, headers and keys among them, go to the source's own scheme and host alone, after a
redirect too; private addresses are refused for any other host, each time that a name is looked up.

What is wrong with the row (no such file, a place that is refused, too large a file) raises BadImage. Anything else may
be the fault of the network, the keys or the storage: it is tried again, and then it fails the run and not the row.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from operators.corpus.images import MAX_IMAGE_BYTES, BadImage
from operators.errors import InputError
from operators.storage import Location, StorageError, locate, open_input, redact
from operators.storage.faults import tried

_WEB = frozenset({"http", "https"})
_LOCAL = frozenset({"", "file", "local"})
_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})  # what serves buckets, and no host of a row's
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE_STATUS = frozenset({404, 410})
_REDIRECTS, _MAX_REDIRECTS = frozenset({301, 302, 303, 307, 308}), 5
_SECONDS_WITHOUT_A_BYTE, _SECONDS_IN_ALL = 30, 300
_PIECE_BYTES = 1 << 20
_AS_WRITTEN = (
    "/%:@!$&'()*+,;=~?[]"  # what a URL may hold; the rest, such as spaces and letters of other scripts, is quoted
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class ImageAccess:
    """Where the images of a source may come from."""

    homes: frozenset[tuple[str, str]] = frozenset({("", "")})  # scheme and host of the source itself
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of the source's storage; for `homes` alone
    private_hosts: bool = False  # whether addresses of this machine and of private networks may be asked

    @staticmethod
    def of(paths: Sequence[str], options: Mapping[str, Any], private_hosts: bool) -> ImageAccess:
        """The access that rows of a source at `paths` have."""
        return ImageAccess(frozenset(_home(path) for path in paths), dict(options), private_hosts)


def fetch(image: Mapping[str, Any], access: ImageAccess) -> bytes:
    """The bytes of one image of IMAGE_TYPE; raises BadImage for a fault of the row, InputError or OSError else."""
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    path: str = image["path"]
    scheme, host = _home(path)
    if scheme in _WEB:
        content = _from_web(path, access)
    elif scheme == "" and not any(home[0] == "" for home in access.homes):
        raise _refused(path, "it is a file of this machine, and the source is not on it")
    elif scheme == "" or (scheme, host) in access.homes or scheme in _STORES:
        content = _from_storage(path, access.options if (scheme, host) in access.homes else {})
    else:
        raise _refused(path, f"images are not fetched by {scheme}://")
    if len(content) > MAX_IMAGE_BYTES:
        raise BadImage("image_too_large", f"the file has more than {MAX_IMAGE_BYTES} bytes")
    return content


def _home(path: str) -> tuple[str, str]:
    """The scheme and host (or bucket) of a path; both empty for a file of this machine."""
    scheme, separator, rest = path.partition("://")
    scheme = scheme.lower() if separator else ""
    if scheme in _LOCAL:
        return "", ""
    return "s3" if scheme == "s3a" else scheme, rest.partition("/")[0].rpartition("@")[2].lower()


def _from_storage(path: str, options: Mapping[str, Any]) -> bytes:
    location: Location | None = None
    try:
        location = locate(path.removeprefix("local://"), options)
        with open_input(location) as stream:
            return stream.read(MAX_IMAGE_BYTES + 1)
    except FileNotFoundError as error:
        raise BadImage("missing_image", f"there is no file {redact(path)}") from error
    except (InputError, StorageError, ValueError) as error:
        # On this machine nothing expires or is out of reach for a while: no path at all, a folder, no access to it.
        is_of_the_row = location is None or location.is_local or isinstance(error, ValueError)
        if isinstance(error, StorageError) and error.errno == 5:  # EIO: the disk
            is_of_the_row = False
        if not is_of_the_row:
            raise
        raise BadImage("missing_image", f"{redact(path)}: {error}") from error


def _from_web(url: str, access: ImageAccess) -> bytes:
    for _ in range(_MAX_REDIRECTS + 1):
        found = tried(functools.partial(_answer_or_fault, url, access), url, access.options, _from_web)
        if isinstance(found, BadImage):
            raise found
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise BadImage("missing_image", f"{redact(url)}: redirected more than {_MAX_REDIRECTS} times")


def _answer_or_fault(url: str, access: ImageAccess) -> bytes | str | BadImage:
    """What `_answer` says, and a fault of the row as a value: it is not tried again."""
    try:
        return _answer(url, access)
    except BadImage as bad:
        return bad


def _answer(url: str, access: ImageAccess) -> bytes | str:
    """The content at a URL, or where it redirects to."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadImage("missing_image", f"{redact(url)}: {error}") from error
    if parts.scheme not in _WEB or not parts.hostname:
        raise _refused(url, "it leads to no web address")
    is_home = _home(url) in access.homes
    connection = _connection(parts, port, is_home or access.private_hosts)
    try:
        headers = {"Accept-Encoding": "identity", **(_headers(access.options) if is_home else {})}
        path = quote(parts.path or "/", safe=_AS_WRITTEN)
        connection.request(
            "GET", f"{path}?{quote(parts.query, safe=_AS_WRITTEN)}" if parts.query else path, headers=headers
        )
        with connection.getresponse() as answer:
            if answer.status in _REDIRECTS and (target := answer.getheader("Location")):
                return target
            _check_status(answer.status, url)
            return _content(answer)
    except (http.client.InvalidURL, UnicodeError) as error:
        raise BadImage("missing_image", f"{redact(url)}: {error}") from error
    except http.client.HTTPException as error:  # IncompleteRead, BadStatusLine: the connection broke off
        raise ConnectionError(f"{type(error).__name__}: the answer is not whole") from error
    finally:
        connection.close()


def _content(answer: http.client.HTTPResponse) -> bytes:
    pieces, size, end = [], 0, time.monotonic() + _SECONDS_IN_ALL
    while size <= MAX_IMAGE_BYTES and (piece := answer.read(_PIECE_BYTES)):
        if time.monotonic() > end:
            raise TimeoutError(f"the answer took more than {_SECONDS_IN_ALL} s")
        pieces.append(piece)
        size += len(piece)
    if size <= MAX_IMAGE_BYTES and answer.length:  # what was promised and did not come
        raise ConnectionError(f"{answer.length} bytes are missing at the end")
    return b"".join(pieces)


def _check_status(status: int, url: str) -> None:
    if status in _GONE_STATUS:
        raise BadImage("missing_image", f"there is no file {redact(url)}")
    if status in _PASSING_STATUS:
        raise ConnectionError(f"HTTP status {status}")
    if status != 200:
        raise InputError(f"get access to {redact(url)}, or leave out the rows that name it: HTTP status {status}")


def _headers(options: Mapping[str, Any]) -> dict[str, str]:
    inner = options.get("client_kwargs") or {}
    return {**(options.get("headers") or {}), **(inner.get("headers") or {})}


class _Plain(http.client.HTTPConnection):
    """A connection to an address that may be asked."""

    may_be_private = False

    def connect(self) -> None:
        self.sock = _socket(self.host, self.port, self.may_be_private)


class _Encrypted(http.client.HTTPSConnection):
    """The same, encrypted."""

    may_be_private = False

    def connect(self) -> None:
        raw = _socket(self.host, self.port, self.may_be_private)
        self.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=self.host)


def _connection(parts: SplitResult, port: int | None, may_be_private: bool) -> _Plain | _Encrypted:
    kind = _Encrypted if parts.scheme == "https" else _Plain
    connection = kind(parts.hostname or "", port, timeout=_SECONDS_WITHOUT_A_BYTE)
    connection.may_be_private = may_be_private
    return connection


def _socket(host: str, port: int, may_be_private: bool) -> socket.socket:
    """A connection to the very address that was judged: a name may have another one the next time it is looked up."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise ConnectionError(f"the name {host} is not known: {error.strerror}") from error
    fault: OSError | None = None
    for family, kind, protocol, _, address in found:
        if not may_be_private and not is_public(str(address[0])):
            raise _refused(host, "it is an address of a private network; source.private_image_hosts=true allows it")
        try:
            connection = socket.socket(family, kind, protocol)
            connection.settimeout(_SECONDS_WITHOUT_A_BYTE)
            connection.connect(address)
        except OSError as error:
            fault = error
            connection.close()
            continue
        return connection
    raise ConnectionError(f"nothing answers at {host}: {fault}") from fault


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also the one that it carries inside."""
    found = ipaddress.ip_address(address.partition("%")[0])
    inner: ipaddress.IPv4Address | None = None
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    if inner is not None:
        return is_public(str(inner))
    return found.is_global and not found.is_multicast


def _refused(path: str, why: str) -> BadImage:
    return BadImage("refused_image", f"{redact(path)} is not fetched: {why}")
