"""What all readers share: the wanted columns, the rows that do not read, and whose fault an error is."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from operators.corpus.source import Source
from operators.errors import InputError
from operators.storage import Location
from operators.work.names import RAW_MESSAGE, RAW_REASON, RAW_ROW

# What a broken or unreadable file raises: Arrow's errors, a bad gzip or zstd stream, text that is not UTF-8.
# InputError (access denied, bucket gone) is not among them: that concerns the run, not the file.
READ_FAULTS = (
    pa.ArrowInvalid,
    pa.ArrowNotImplementedError,
    OSError,
    EOFError,
    zlib.error,
    csv.Error,
    UnicodeDecodeError,
)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns to read, with the type that each kept one has in the output."""

    text: tuple[str, ...]  # what is embedded: as strings, and of Parquet images also as bytes
    id: str | None
    keep: pa.Schema

    @staticmethod
    def of(source: Source, keep: pa.Schema) -> Columns:
        """The columns that `source` and the kept ones need."""
        return Columns(source.content_columns, source.id, keep)

    @property
    def names(self) -> tuple[str, ...]:
        """Every wanted column once."""
        return tuple(dict.fromkeys((*self.text, *((self.id,) if self.id else ()), *self.keep.names)))


def raise_if_about_the_run(error: BaseException, location: Location) -> None:
    """A vanished or forbidden object, or a storage that does not answer, is no fault of the file's content."""
    if isinstance(error, FileNotFoundError):
        raise InputError(
            f"run again: {location.url} was there when the source was listed and is gone now; the next run lists anew"
        ) from error
    if isinstance(error, (PermissionError, TimeoutError, ConnectionError)):
        raise error
    # botocore and s3fs wrap what the server said in OSErrors with an errno; a decoder's errors have none.
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def bad_rows(rows: Iterable[int], reason: str, message: str) -> pa.Table:
    """Rows of which nothing is known but the reason why."""
    source_row = pa.array(rows, pa.int64())
    count = len(source_row)
    return pa.table(
        {
            RAW_ROW: source_row,
            RAW_REASON: pa.array([reason] * count, pa.string()),
            RAW_MESSAGE: pa.array([message] * count, pa.string()),
        }
    )


def one_line(error: BaseException) -> str:
    """An error in one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
