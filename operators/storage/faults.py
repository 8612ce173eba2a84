"""What can go wrong between us and a storage: tried again where it may pass, said plainly where it will not.

Two layers try again. botocore repeats single requests (throttling, 5xx, refused and broken connections; exponential
back-off with jitter, see `S3_CONFIG`). `tried` repeats whole operations that may be done twice, for what botocore
gives up on or does not see: bodies that break off, listings that do not parse, conflicts. s3fs's own retries, which
would multiply with both, are off: it repeats neither 5xx nor refused connections, and waits without jitter.

No message made here holds a secret, and no traceback shows one that the storage's own message held.
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from weakref import WeakSet

from operators.errors import InputError

Result = TypeVar("Result")

S3_CONFIG: dict[str, Any] = {
    # 6 attempts, with 15 s between them in the mean; more is the business of `tried`, which also covers bodies.
    "retries": {"mode": "standard", "max_attempts": 5},
    "connect_timeout": 10,
    "read_timeout": 30,  # seconds without a byte
    "max_pool_connections": 64,
}
_ROUNDS = 6
_FIRST_WAIT_SECONDS = 0.25
_PATIENCE_SECONDS = 300  # no new round after this: a storage that hangs must not hold a worker for hours

_PASSING_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset(
    {
        "BadDigest",  # the body was damaged on the way
        "ConditionalRequestConflict",  # two conditional writes at once; AWS asks to try again
        "IncompleteBody",
        "InternalError",
        "NoSuchUpload",  # completing a multipart upload whose first completion got through, its answer not
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "XAmzContentSHA256Mismatch",
    }
)
_PASSING_ERRNOS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,  # also what s3fs makes of a 503
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
# By name, so that no storage's package is imported for its exceptions: aiohttp, botocore, urllib3, http.client.
_PASSING_CLASSES = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionClosedError",
        "EndpointConnectionError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "ResponseParserError",
        "ResponseStreamingError",
    }
)
_UNREACHABLE_CLASSES = frozenset({"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "SSLError"})
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL_CODES = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "507"})  # RGW, MinIO
_REFUSED_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_OWN_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

# Each part is read once: names of a query's parts are found first and judged afterwards, and no quantifier can take
# what the next one could, so that a row's path of megabytes costs no more than its length.
_USER_INFO = re.compile(r"(?<=://)[^/?#\s]+(?=@)")  # to the last @: a password may hold one
_QUERY_PART = re.compile(r"([?&])([^=&?\s]++)=([^&\s\"']++)")
_SIGNING_NAME = re.compile(r"(?i)signature|credential|token|sig|key|secret")
_SECRET_NAME = re.compile(
    r"""(?x) ^(key|sas|pwd)$ | secret | passw | passphrase | credential | signature$ | authorization | connection_string
    | (access|account|api|private|shared|encryption|customer|ssh|auth)_?key
    | ^token$ | (session|access|auth|bearer|security|refresh|api|hf|hub|id|sas|oauth)_?token"""
)

_answered: WeakSet[object] = WeakSet()  # filesystems that have worked in this process


class StorageError(OSError):
    """The storage failed and went on failing, for no fault of the config or of a file; `errno` is always set."""

    def __str__(self) -> str:
        return str(self.strerror)


def tried(operation: Callable[[], Result], where: str, options: Mapping[str, Any], filesystem: object) -> Result:
    """Do an operation that may be done twice, again after faults that pass; others are raised in plain words.

    `where` is the URL for the message, `options` are what secrets are looked up in, and `filesystem` names whatever
    answers: one that never did is given up after the first round, since a mistyped endpoint should not take minutes.
    Raises FileNotFoundError, FileExistsError, InputError or StorageError.
    """
    begun = time.monotonic()
    for attempt in range(1, _ROUNDS + 1):
        try:
            result = operation()
        except (InputError, StorageError):
            raise
        except Exception as error:
            is_over = attempt == _ROUNDS or time.monotonic() - begun > _PATIENCE_SECONDS
            never_answered = is_unreachable(error) and filesystem not in _answered
            if is_over or never_answered or not is_passing(error):
                # A cause whose text holds a secret must not show in a traceback.
                told, shown = _in_plain_words(error, where, options), "".join(traceback.format_exception(error))
                raise told from (error if hide(shown, options) == shown else None)
        else:
            _answered.add(filesystem)
            return result
        time.sleep(_FIRST_WAIT_SECONDS * 2**attempt * random.random())
    raise AssertionError("the last attempt returns or raises")


def server_code(error: BaseException) -> str:
    """The S3 error code behind an exception ("NoSuchBucket"), a status where there was no body, or an empty text."""
    for fault in _chain(error):
        response = getattr(fault, "response", None)
        if isinstance(response, Mapping):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def is_passing(error: BaseException) -> bool:
    """Whether the same operation may succeed a moment later."""
    if was_replaced(error) or _is_misuse(error):
        return False
    for fault in _chain(error):
        response = getattr(fault, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return status in _PASSING_STATUS or server_code(fault) in _PASSING_CODES | {str(s) for s in _PASSING_STATUS}
    if isinstance(error, (TimeoutError, ConnectionError, EOFError)) or is_unreachable(error):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    return _is_named(error, _PASSING_CLASSES)


def was_replaced(error: BaseException) -> bool:
    """Whether another object has taken the place of the one that was opened for reading."""
    # s3fs meets a 412 without a message, as RGW sends it, with a TypeError; its own FileExpired says EBUSY.
    source = error.__context__ if isinstance(error, TypeError) and error.__context__ else error
    return _is_named(error, frozenset({"FileExpired"})) or server_code(source) in ("PreconditionFailed", "412")


def is_unreachable(error: BaseException) -> bool:
    """Whether nothing answers at all at the endpoint."""
    # botocore also says that it could not connect when an open connection was reset.
    was_reset = getattr(_wrapped(error), "errno", None) in (errno.ECONNRESET, errno.EPIPE)
    return _is_named(error, _UNREACHABLE_CLASSES) and not was_reset


def redact(value: Any) -> Any:
    """A copy of a config in which whatever looks like a secret, by its key or inside a URL, is replaced by ***."""
    if isinstance(value, Mapping):
        return {name: _MASK if _is_secret(name, inner) else redact(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(map(redact, value))
    if isinstance(value, list):
        return list(map(redact, value))
    return hide(value) if isinstance(value, str) else value


def hide(text: str, options: Mapping[str, Any] | None = None) -> str:
    """A text without user:password@ and signatures in URLs, and without any secret of `options` and the environment."""
    for secret in (*_secrets(options or {}), *(os.environ.get(name, "") for name in _OWN_ENVIRONMENT)):
        if len(secret) >= 8:  # what is shorter is no secret, and may be in any text by chance
            text = text.replace(secret, _MASK)
    return _QUERY_PART.sub(_masked_part, _USER_INFO.sub(_MASK, text))


def holds_secret(url: str) -> bool:
    """Whether a URL itself carries a password or a signature."""
    if any(":" in found[0] for found in _USER_INFO.finditer(url)):
        return True
    return any(_SIGNING_NAME.search(part[2]) for part in _QUERY_PART.finditer(url))


_MASK = "***"


def _masked_part(part: re.Match[str]) -> str:
    return f"{part[1]}{part[2]}={_MASK}" if _SIGNING_NAME.search(part[2]) else part[0]


def _is_secret(name: object, value: object) -> bool:
    # "sessionToken", "session-token" and "SESSION_TOKEN" are one name; numbers (max_tokens, batch_tokens) are none.
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", str(name)).replace("-", "_").lower()
    return isinstance(value, (str, bytes)) and bool(_SECRET_NAME.search(snake))


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif _is_secret(name, value) and isinstance(value, str):
            yield value


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_misuse(error: BaseException) -> bool:
    """Whether the request could not even be sent, such as for a malformed endpoint."""
    return isinstance(_wrapped(error), (ValueError, TypeError))


def _wrapped(error: BaseException) -> object:
    """What botocore wraps; `kwargs` is its name for the parts of its messages."""
    parts = getattr(error, "kwargs", None)
    return parts.get("error") if isinstance(parts, dict) else None


def _is_named(error: BaseException, names: frozenset[str]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)


def _in_plain_words(error: Exception, where: str, options: Mapping[str, Any]) -> Exception:
    """The exception to raise instead: its first line says what to do."""
    place, said = hide(where, options), " ".join(hide(str(error), options).split())
    advice = _advice_on_settings(error, place, said)
    if advice:
        return InputError(advice)
    number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "there is no such file", place)
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, "there is such a file already", place)
    if number in _FULL_ERRNOS or server_code(error) in _FULL_CODES:
        return StorageError(
            errno.ENOSPC, f"free some space (or raise the quota) and run again: the storage is full at {place} ({said})"
        )
    if was_replaced(error):
        return StorageError(errno.ESTALE, f"run again: {place} was replaced while it was read")
    if is_unreachable(error):
        return StorageError(
            errno.EHOSTUNREACH,
            f"check endpoint_url (or AWS_ENDPOINT_URL) and the network: nothing answers for {place} ({said})",
        )
    if is_passing(error):
        return StorageError(
            number, f"run again when the storage is well: it kept failing at {place} ({type(error).__name__}: {said})"
        )
    if isinstance(error, OSError) or server_code(error):
        return StorageError(
            number, f"the storage refused {place}: {server_code(error) or type(error).__name__}: {said}"
        )
    return error  # a bug of ours or the driver's, and better seen as it is


def _advice_on_settings(error: Exception, place: str, said: str) -> str:
    """What the user should change, where the config, the credentials or a permission is at fault; else empty."""
    code, name = server_code(error), type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "NoAuthTokenError"):
        return (
            f"give credentials for {place}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or key and "
            f"secret in storage_options ({said})"
        )
    if code in ("ExpiredToken", "TokenRefreshRequired"):
        return f"renew the credentials for {place}: they have expired"
    if code == "RequestTimeTooSkewed":
        return f"set this machine's clock: the storage of {place} refuses requests that are minutes off"
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"):
        return f"check the credentials for {place}: the storage does not know the key, or the secret is wrong ({code})"
    if code == "NoSuchBucket":
        return f"check the bucket's name: there is none for {place}"
    if code == "InvalidBucketName" or name == "ParamValidationError":
        return f"check the bucket's name in {place} ({said})"
    if isinstance(error, OSError) and not code and error.errno in _REFUSED_ERRNOS:
        return f"get permission for {place}: the system refuses it ({error.strerror or said})"
    if isinstance(error, PermissionError):
        return f"get access to {place}: the storage refused it ({said}); check the credentials and their permissions"
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return f"check the path {place}: there is a folder where a file should be, or the reverse ({said})"
    if isinstance(error, TypeError) and "keyword argument" in said:
        return f"check storage_options for {place}: {said}"
    if isinstance(error, ValueError) and ("endpoint" in said.lower() or "null byte" in said):
        return f"check the path and storage_options of {place}: {said}"
    is_boto = type(error).__module__.startswith("botocore.exceptions") and not code
    return (
        f"check storage_options and the AWS settings for {place}: {said}" if is_boto and not is_passing(error) else ""
    )
