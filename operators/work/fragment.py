"""The records that flow through a job, and how one fragment travels as a single Arrow row.

    SourceFile -> Unit -> Fragment -> FragmentBatch

A *unit* is what one read task opens (some row groups, a byte range, several small files, one compressed stream).
A *fragment* is what is embedded, retried, written and committed at once: a unit read from its start and cut after
so many rows or bytes of text (operators/corpus/cutting.py), so most units are exactly one fragment, and a compressed
file of any size is read once in bounded memory. A fragment's key follows from what it reads alone.

`FragmentBatch` is a fragment with its rows at some stage. Between Ray workers it is one row of an Arrow table, its
tables inside as Arrow IPC (read back without a copy): whatever Ray does to blocks, a fragment is never split or merged,
and one whose rows were all rejected still arrives.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring_ascii as _quoted

import pyarrow as pa

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string()),  # null where the row never had a readable id
        pa.field("source_path", pa.string(), nullable=False),
        pa.field("source_row", pa.int64()),  # 0-based; for JSONL split by bytes, where the line begins (see Extent)
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One object of the source; `version` is its etag, or its mtime where the storage has no etags."""

    path: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of one file: row groups [start, end) of Parquet, bytes [start, end) of JSONL; end -1 is the whole file.

    `first_row` is the 0-based row of the file at which the extent begins; -1 where that would cost a pass over the
    file, and rows are then numbered by the byte at which their line begins.
    """

    file: SourceFile
    start: int = 0
    end: int = -1
    first_row: int = 0
    share: float = 1.0  # of the file's bytes, roughly


@dataclass(frozen=True, slots=True)
class Unit:
    """What one read task opens; `digest` identifies the bytes it reads and how they are cut and interpreted.

    `left_out` names the rows that are not to be embedded because rows of other units have their ids, "" where there are
    none. What a fragment holds depends on them, so they are part of its key: a unit whose rows are the only ones left
    with their ids is another one than it was.
    """

    digest: str
    extents: tuple[Extent, ...]
    left_out: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes of storage that the unit reads, roughly (a file's bytes are spread over its row groups by rows)."""
        return sum(round(extent.file.size * extent.share) for extent in self.extents)

    @staticmethod
    def of(extents: tuple[Extent, ...], reading: str) -> Unit:
        """Name a unit by its extents and `reading`, a stable text of every option that changes what is read."""
        digest = hashlib.blake2b(reading.encode(), digest_size=12)
        for extent in extents:
            digest.update(_as_json(extent).encode())
        return Unit(digest.hexdigest(), extents)

    def leaving_out(self, positions: tuple[int, ...]) -> Unit:
        """The same with these rows (0-based, ascending) left out for their ids."""
        if not positions:
            return replace(self, left_out="")
        rows = ",".join(map(str, positions)).encode()
        return replace(self, left_out="x" + hashlib.blake2b(rows, digest_size=6).hexdigest())


def _as_json(extent: Extent) -> str:
    """As json.dumps writes the nested tuple, in a third of the time: a listing has millions of them."""
    file = extent.file
    return (
        f"[[{_quoted(file.path)}, {file.size}, {_quoted(file.version)}], "
        f"{extent.start}, {extent.end}, {extent.first_row}, {extent.share!r}]"
    )


@dataclass(frozen=True, slots=True)
class Fragment:
    """The `part`-th cut of a unit; `last` is true for its final part: a unit is whole when parts 0..last are there."""

    unit: Unit
    part: int
    last: bool

    @property
    def key(self) -> str:
        """The fragment's name in storage: hex digits, a number and an x, safe in any path."""
        return f"{self.unit.digest}-{self.part:05d}{self.unit.left_out}"


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened to one fragment's rows; all counts are of this fragment alone."""

    rows: int = 0  # input rows: embedded + rejected
    rejected: int = 0
    chunks: int = 0  # vectors written
    tokens: int = 0  # tokens the model read, special tokens and prompts included, padding not
    padding_tokens: int = 0
    unreadable_files: int = 0  # that broke before their end; files count where they broke
    lost_bytes: int = 0  # of the source, where one rejected row stands for nobody knows how many
    lost_tokens: int = 0  # cut off by truncation; an estimate for documents cut before tokenizing
    truncated: int = 0  # chunks that were cut
    unknown_tokens: int = 0  # words that a static embedder has no vector for
    source_bytes: int = 0  # of storage that were read for it; of several rows in a block, by their number
    deaths: int = 0  # worker processes that died on this fragment
    flops: float = 0.0  # arithmetic that the model needs for its tokens, for MFU
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> busy seconds
    lengths: tuple[int, ...] = ()  # histogram of chunk lengths: count per LENGTH_EDGES bin


# Upper edges (inclusive) of the bins of the token-length histogram; a last bin holds what is longer.
LENGTH_EDGES = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192, 32768)


@dataclass(frozen=True, slots=True)
class FragmentBatch:
    """A fragment with its good rows (`table`, whose columns depend on the stage) and its rejected ones."""

    fragment: Fragment
    table: pa.Table
    rejected: pa.Table
    counts: Counts
    ids_digest: str = ""  # digest over (path, row, doc_id) of all input rows in order, set by the reader
    is_written: bool = (
        False  # storage has it already: it passes through untouched, so that a retried reader repeats itself
    )

    def advance(self, table: pa.Table, newly_rejected: list[dict[str, object]], **changes: object) -> FragmentBatch:
        """The same fragment one stage on: a new table, further rejected rows, changed counts."""
        more = pa.Table.from_pylist(newly_rejected, schema=REJECTED_SCHEMA)
        return dataclasses.replace(
            self,
            table=table,
            rejected=pa.concat_tables([self.rejected, more]),
            counts=dataclasses.replace(self.counts, **changes),  # type: ignore[arg-type]  # names checked by dataclass
        )

    def spent(self, stage: str, seconds: float) -> FragmentBatch:
        """The same batch with busy seconds added to one stage."""
        total = {**self.counts.seconds, stage: self.counts.seconds.get(stage, 0.0) + seconds}
        return dataclasses.replace(self, counts=dataclasses.replace(self.counts, seconds=total))


def to_row(batch: FragmentBatch) -> pa.Table:
    """Pack a batch into the one-row table that travels between workers."""
    head = {
        "fragment": dataclasses.asdict(batch.fragment),
        "counts": dataclasses.asdict(batch.counts),
        "ids_digest": batch.ids_digest,
        "is_written": batch.is_written,
    }
    return pa.table(
        {
            "key": pa.array([batch.fragment.key]),
            "head": pa.array([json.dumps(head)]),
            "table": _ipc_column(batch.table),
            "rejected": _ipc_column(batch.rejected),
        }
    )


def from_row(row: pa.Table) -> FragmentBatch:
    """Unpack `to_row`'s table; the inner tables are views of its buffers."""
    assert row.num_rows == 1, f"a fragment travels as one row, got {row.num_rows}"
    head = json.loads(row["head"][0].as_py())
    counts = head["counts"]
    return FragmentBatch(
        fragment=fragment_from_dict(head["fragment"]),
        table=_open_ipc(row["table"]),
        rejected=_open_ipc(row["rejected"]),
        counts=Counts(**{**counts, "lengths": tuple(counts["lengths"])}),
        ids_digest=head["ids_digest"],
        is_written=head["is_written"],
    )


def unit_from_dict(unit: dict[str, object]) -> Unit:
    """Rebuild a unit from `dataclasses.asdict`."""
    extents = tuple(
        Extent(SourceFile(**e["file"]), e["start"], e["end"], e["first_row"], e["share"])
        for e in unit["extents"]  # type: ignore[attr-defined]  # JSON has no static shape
    )
    return Unit(str(unit["digest"]), extents, str(unit.get("left_out", "")))


def fragment_from_dict(fragment: dict[str, object]) -> Fragment:
    """Rebuild a fragment from `dataclasses.asdict`."""
    unit = unit_from_dict(fragment["unit"])  # type: ignore[arg-type]  # JSON has no static shape
    return Fragment(unit, int(fragment["part"]), bool(fragment["last"]))  # type: ignore[call-overload]  # as above


def _ipc_column(table: pa.Table) -> pa.Array:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    payload = sink.getvalue()
    offsets = pa.py_buffer(_int64_pair(payload.size))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, payload])


def _int64_pair(size: int) -> bytes:
    return (0).to_bytes(8, "little") + size.to_bytes(8, "little")


def _open_ipc(column: pa.ChunkedArray) -> pa.Table:
    return pa.ipc.open_stream(column.combine_chunks()[0].as_buffer()).read_all()
