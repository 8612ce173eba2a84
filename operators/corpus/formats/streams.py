"""Byte streams between the storage and the readers: counted, decompressed, and as whole as a broken end allows."""

from __future__ import annotations

import io
import sys
import zlib
from dataclasses import dataclass
from typing import BinaryIO, cast

import pyarrow as pa

from operators.corpus.formats.raw import READ_FAULTS

BLOCK_BYTES = 4 << 20
BATCH_ROWS = 4096


@dataclass(slots=True)
class Pace:
    """How much is read at a time, and how far into its files reading is; a sample goes in small steps to be exact."""

    block_bytes: int = BLOCK_BYTES
    batch_rows: int = BATCH_ROWS
    step_bytes: int | None = None  # most bytes taken from storage at once; None = as asked for
    bytes_read: float = 0  # of storage; of Parquet, the file's bytes in proportion to its rows
    unreadable_files: int = 0  # that broke before their end: one rejected row stands for what followed
    lost_bytes: int = 0  # where nobody knows how many rows there were; of storage, of a compressed CSV as unpacked


def metered(raw: BinaryIO, pace: Pace) -> BinaryIO:
    """`raw`, with what is read of it counted into `pace`."""
    return cast(BinaryIO, _Metered(raw, pace))


def decompressed(raw: BinaryIO, compression: str | None) -> BinaryIO:
    """The content of a gzip, zstd or plain stream; raises one of `READ_FAULTS` at a broken or truncated end."""
    if compression is None:
        return raw
    if compression == "gzip":
        return cast(BinaryIO, _Salvaging(_Gunzip(raw)))
    # Arrow's stream raises on a truncated end, and reads frames one after the other.
    return cast(BinaryIO, _Salvaging(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)))


class _Metered(io.RawIOBase):
    def __init__(self, raw: BinaryIO, pace: Pace) -> None:
        self._raw, self._pace = raw, pace

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if size is None or size < 0:
            block = self._raw.read()
        else:
            block = self._raw.read(min(size, self._pace.step_bytes or size))
        self._pace.bytes_read += len(block)
        return block

    read1 = read


class _Gunzip:
    """Members of a gzip stream, one after the other; zero bytes after a member are padding, as for Python's gzip.

    Arrow's stream takes padding for a broken member. Raises zlib.error or EOFError right where the stream breaks:
    what comes before is given, which Python's own reader loses in its buffer.
    """

    _BLOCK_BYTES = 1 << 16

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._pending = raw.read(self._BLOCK_BYTES)
        self._member = zlib.decompressobj(wbits=31) if self._pending else None

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        while self._member is not None:
            block = self._pending or self._raw.read(self._BLOCK_BYTES)
            piece = self._member.decompress(block, size)
            self._pending = self._member.unconsumed_tail
            if self._member.eof:
                self._begin_member(self._member.unused_data)
            elif not piece and not block:
                raise EOFError("the compressed stream ends before its end marker")
            if piece:
                return piece
        return b""

    def _begin_member(self, rest: bytes) -> None:
        rest = rest.lstrip(b"\0")
        while not rest and (block := self._raw.read(self._BLOCK_BYTES)):
            rest = block.lstrip(b"\0")
        self._pending = rest
        self._member = zlib.decompressobj(wbits=31) if rest else None


class _Salvaging(io.RawIOBase):
    """A decompressed stream that gives what it can before it raises: Arrow's own loses the read in which it fails."""

    _PIECE_BYTES = 4096

    def __init__(self, stream: pa.NativeFile | _Gunzip) -> None:
        self._stream = stream
        self._fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._fault is not None:
            raise self._fault
        pieces: list[bytes] = []
        left = size if size is not None and size >= 0 else sys.maxsize
        while left:
            try:
                piece = self._stream.read(min(left, self._PIECE_BYTES))
            except READ_FAULTS as error:
                if not pieces:
                    raise
                self._fault = error
                break
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    read1 = read
