"""A training set on storage, ready to be drawn from: written once, whole or not at all, read by any number of ranks.

    FOLDER/<fingerprint>/manifest.json          written last; without it there is no set
    FOLDER/<fingerprint>/<part>.arrow           rows (`cleaning.ROW_SCHEMA`): uncompressed Arrow IPC, one record batch
    FOLDER/<fingerprint>/<part>.npy             hashes of each row's texts, [rows, 1 + documents]

Parts are fetched to the machine's cache when a row of theirs is first asked for, checked by their hash, and mapped into
memory: what is held is the batch that was taken. A part has at most `PART_ROWS` rows or about `PART_BYTES` of text.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from operators.corpus.formats import Columns, read_extent
from operators.errors import InputError
from operators.storage import Location, read_bytes, write_whole
from operators.storage.cache import Cache
from operators.training.config.sets import TrainingSet
from operators.training.data.cleaning import ROW_SCHEMA, Cleaned, clean
from operators.training.data.counts import RowCounts
from operators.training.data.mixing import key_of, mixed
from operators.work.fragment import Unit

Split = Literal["train", "dev"]
PART_ROWS, PART_BYTES = 1 << 16, 64 << 20
_DEV_KEY = key_of("dev")  # no seed: more rows, or another seed, move no row to the other side


class StoredFile(BaseModel):
    """A file of a part, as it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int
    sha256: str


class Part(BaseModel):
    """Some rows of one split, in the order of the source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Split
    rows: int
    table: StoredFile
    hashes: StoredFile


class Manifest(BaseModel):
    """What a prepared set holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    kind: str
    num_documents: int  # K, of each row
    parts: tuple[Part, ...]
    counts: RowCounts

    def rows(self, split: Split) -> int:
        """Rows of a split."""
        return sum(part.rows for part in self.parts if part.split == split)


def read_manifest(folder: Location) -> Manifest | None:
    """The manifest in a prepared set's folder; None where the set was not written to its end."""
    try:
        content = read_bytes(folder / "manifest.json")
    except FileNotFoundError:
        return None
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"remove {folder} and run again: its manifest.json does not read ({error})") from None


def write_manifest(folder: Location, training_set: TrainingSet, parts: Iterable[Part], counts: RowCounts) -> Manifest:
    """Make the set whole. Raises InputError for one without training rows."""
    manifest = Manifest(
        fingerprint=folder.name,
        kind=training_set.kind,
        num_documents=training_set.num_documents,
        parts=tuple(parts),
        counts=counts,
    )
    if not manifest.rows("train") and manifest.rows("dev"):
        raise InputError(
            f"lower dev_fraction of the set {training_set.name!r}: {training_set.dev_fraction:g} holds all "
            f"{manifest.rows('dev')} rows back"
        )
    if not manifest.rows("train"):
        examples = "".join(f"\n  {reason}: {places[0]}" for reason, places in counts.examples.items())
        raise InputError(f"check the set {training_set.name!r}, which is left without a row: {counts}{examples}")
    write_whole(folder / "manifest.json", manifest.model_dump_json(indent=1).encode())
    return manifest


def prepare_unit(
    unit: Unit, training_set: TrainingSet, types: pa.Schema, folder: Location, seed: int
) -> Iterator[tuple[Part | None, RowCounts]]:
    """Write the parts of a unit; yields each with the counts since the one before, at the end without a part.

    Doing it again writes the same files again. `types` are those of `sets.typed_columns`.
    """
    open_parts: dict[Split, _OpenPart] = {split: _OpenPart(split, unit.digest) for split in ("train", "dev")}
    counts = RowCounts()
    plain = tuple(name for name in training_set.wanted if name not in types.names)
    source, columns = training_set.source(), Columns(plain, None, types)
    for extent in unit.extents:
        for raw in read_extent(extent, source, columns):
            cleaned = clean(raw, extent.file.path, training_set, seed)
            counts = RowCounts.total([counts, cleaned.counts])
            for open_part in open_parts.values():
                open_part.add(cleaned, is_dev(cleaned.hashes_RT[:, 0], training_set.dev_fraction))
                if open_part.is_full:
                    yield open_part.write(folder), counts
                    counts = RowCounts()
    for open_part in open_parts.values():
        if open_part.num_rows:
            yield open_part.write(folder), counts
            counts = RowCounts()
    yield None, counts


def is_dev(query_hashes_R: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Which rows are held back: a fraction of the queries, whatever else is in the set."""
    return np.asarray(mixed(query_hashes_R, _DEV_KEY) / 2**64 < fraction)


class _OpenPart:
    """Rows of a split that are not on storage yet."""

    def __init__(self, split: Split, unit: str) -> None:
        self._split, self._unit, self._number = split, unit, 0
        self._clear()

    def _clear(self) -> None:
        self._tables: list[pa.Table] = []
        self._hashes: list[NDArray[np.uint64]] = []
        self.num_rows = self._bytes = 0

    @property
    def is_full(self) -> bool:
        return self.num_rows >= PART_ROWS or self._bytes >= PART_BYTES

    def add(self, cleaned: Cleaned, is_dev_R: NDArray[np.bool_]) -> None:
        mask_R = is_dev_R if self._split == "dev" else ~is_dev_R
        if not mask_R.any():
            return
        table = cleaned.rows.filter(pa.array(mask_R))
        self._tables.append(table)
        self._hashes.append(cleaned.hashes_RT[mask_R])
        self.num_rows += table.num_rows
        self._bytes += table.nbytes

    def write(self, folder: Location) -> Part:
        name = f"{self._split}-{self._unit}-{self._number:05d}"
        table = pa.concat_tables(self._tables).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, ROW_SCHEMA) as writer:
            writer.write_table(table)
        hashes = io.BytesIO()
        np.save(hashes, np.concatenate(self._hashes), allow_pickle=False)
        part = Part(
            split=self._split,
            rows=table.num_rows,
            table=store(folder, f"{name}.arrow", sink.getvalue()),
            hashes=store(folder, f"{name}.npy", hashes.getbuffer()),
        )
        self._number += 1
        self._clear()
        return part


def store(folder: Location, name: str, content: Any) -> StoredFile:
    """Write a file whole, of bytes or an Arrow buffer."""
    write_whole(folder / name, content)
    view = memoryview(content)
    return StoredFile(name=name, bytes=view.nbytes, sha256=hashlib.sha256(view).hexdigest())


class PreparedRows:
    """The rows of one split, by number; not safe for several threads."""

    def __init__(self, folder: Location, manifest: Manifest, split: Split, cache: Cache) -> None:
        self._folder, self._cache = folder, cache
        self._parts = [part for part in manifest.parts if part.split == split]
        self._ends = np.cumsum([part.rows for part in self._parts], dtype=np.int64)
        self._tables: dict[int, pa.Table] = {}
        self._hashes: dict[int, NDArray[np.uint64]] = {}
        self._num_texts = 1 + manifest.num_documents

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._parts else 0

    def take(self, rows_B: NDArray[np.int64]) -> pa.Table:
        """The rows, in the order asked for, in `ROW_SCHEMA`; raises IndexError for one that is not there."""
        asked = list(by_part(rows_B, self._ends))
        if not asked:
            return ROW_SCHEMA.empty_table()
        found = [self._table(part).take(pa.array(inside)) for part, _, inside in asked]
        places = np.concatenate([places for _, places, _ in asked])
        return pa.concat_tables(found).combine_chunks().take(pa.array(np.argsort(places)))

    def hashes(self, rows_B: NDArray[np.int64]) -> NDArray[np.uint64]:
        """hashes_BT of the rows' texts, of the query and the documents."""
        hashes_BT = np.empty((len(rows_B), self._num_texts), np.uint64)
        for part, places, inside in by_part(rows_B, self._ends):
            hashes_BT[places] = self._hash_file(part)[inside]
        return hashes_BT

    def _table(self, part: int) -> pa.Table:
        if part not in self._tables:
            with pa.memory_map(str(self._fetch(self._parts[part].table))) as mapped:
                self._tables[part] = pa.ipc.open_file(mapped).read_all()
        return self._tables[part]

    def _hash_file(self, part: int) -> NDArray[np.uint64]:
        if part not in self._hashes:
            file = self._fetch(self._parts[part].hashes)
            self._hashes[part] = np.load(file, mmap_mode="r", allow_pickle=False)
        return self._hashes[part]

    def _fetch(self, file: StoredFile) -> Any:
        return self._cache.fetch(self._folder / file.name, file.sha256, file.bytes)


def by_part(
    rows_B: NDArray[np.int64], ends: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """For each part that holds some of the rows: its number, the places in `rows_B`, the rows in the part.

    `ends` are the numbers of rows up to the end of each part; raises IndexError for a row that is in none.
    """
    num_rows = int(ends[-1]) if len(ends) else 0
    if len(rows_B) and not 0 <= rows_B.min() <= rows_B.max() < num_rows:
        raise IndexError(f"rows 0 to {num_rows - 1} are there; asked for {rows_B.min()} to {rows_B.max()}")
    part_B = np.searchsorted(ends, rows_B, side="right")
    order = np.argsort(part_B, kind="stable")
    cuts = np.flatnonzero(np.diff(part_B[order])) + 1
    for places in np.split(order, cuts) if len(order) else []:
        part = int(part_B[places[0]])
        yield part, places, rows_B[places] - (ends[part - 1] if part else 0)
