"""What a teacher said of a prepared set, on storage: written piece by piece, read by row.

    SET/teachers/<fingerprint>/manifest.json                     written last; without it the outputs are not whole
    SET/teachers/<fingerprint>/<split>-<first row>.json          of a piece, after its files: rows, files, hashes
    SET/teachers/<fingerprint>/<split>-<first row>-<hash>.npy    vectors of its different texts [M, D], or scores [R, K]
    ... and another such file                                    which vector each text has, [R, 1 + K] int32

A piece is `PIECE_ROWS` rows of a split, whatever parts they lie in. Its files are named by their content, so that two
workers that write the same piece do not mix, even where a GPU does not give the same bits twice. Readers map the files
of a piece into memory when a row of it is first asked for, after they were fetched and checked.

Shapes: B rows asked for, R rows of a piece, K documents of a row, T = 1 + K texts, M different texts, D dims.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from operators.errors import InputError
from operators.storage import Location, list_folder, read_bytes, write_whole
from operators.storage.cache import Cache
from operators.teachers.config import Output
from operators.training.data.prepared import Split, StoredFile, by_part, store

PIECE_ROWS = 2048  # the unit of work and retry: some 20,000 texts or pairs where K is 8


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a teacher says of R rows."""

    values: NDArray[Any]  # vectors_MD float16 or float32, or scores_RK float32
    places_RT: NDArray[np.int32] | None  # of vectors
    num_inputs: int  # different texts, or pairs, that it read
    num_tokens: int

    def first_bad_row(self) -> int | None:
        """The first row for which the teacher gave NaN or infinity."""
        bad = ~np.isfinite(self.values).all(axis=1)
        rows = np.flatnonzero(bad if self.places_RT is None else bad[self.places_RT].any(axis=1))
        return int(rows[0]) if len(rows) else None


def joined(pieces: Sequence[Outputs]) -> Outputs:
    """The outputs of consecutive rows as one."""
    if len(pieces) == 1:
        return pieces[0]
    starts = np.cumsum([0, *(len(piece.values) for piece in pieces)])
    places = [
        piece.places_RT + start for piece, start in zip(pieces, starts, strict=False) if piece.places_RT is not None
    ]
    return Outputs(
        np.concatenate([piece.values for piece in pieces]),
        np.concatenate(places).astype(np.int32) if places else None,
        sum(piece.num_inputs for piece in pieces),
        sum(piece.num_tokens for piece in pieces),
    )


class Piece(BaseModel):
    """Rows [start, start + rows) of a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Split
    start: int
    rows: int

    @property
    def key(self) -> str:
        """Its name."""
        return f"{self.split}-{self.start:012d}"


class StoredPiece(BaseModel):
    """A piece that is on storage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    piece: Piece
    values: StoredFile
    places: StoredFile | None
    num_inputs: int
    num_tokens: int


class OutputManifest(BaseModel):
    """All outputs of a teacher for a set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    teacher: str  # its name in the config that first asked for it
    output: Output
    num_documents: int  # K
    width: int | None  # D, of vectors
    pieces: tuple[StoredPiece, ...]

    @property
    def num_inputs(self) -> int:
        """Texts or pairs that the teacher read; equal ones of a piece once."""
        return sum(piece.num_inputs for piece in self.pieces)

    @property
    def num_tokens(self) -> int:
        """Tokens of those."""
        return sum(piece.num_tokens for piece in self.pieces)


def cut_pieces(rows: dict[Split, int]) -> list[Piece]:
    """The pieces of splits of so many rows."""
    return [
        Piece(split=split, start=start, rows=min(PIECE_ROWS, total - start))
        for split, total in rows.items()
        for start in range(0, total, PIECE_ROWS)
    ]


def encoded(array: NDArray[Any]) -> bytes:
    """An array as the content of a .npy file."""
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(array), allow_pickle=False)
    return sink.getvalue()


def write_piece(
    folder: Location, piece: Piece, values: bytes, places: bytes | None, num_inputs: int, num_tokens: int
) -> StoredPiece:
    """Put a piece on storage, its record last."""

    def stored(content: bytes) -> StoredFile:
        return store(folder, f"{piece.key}-{hashlib.sha256(content).hexdigest()[:16]}.npy", content)

    record = StoredPiece(
        piece=piece,
        values=stored(values),
        places=None if places is None else stored(places),
        num_inputs=num_inputs,
        num_tokens=num_tokens,
    )
    write_whole(folder / f"{piece.key}.json", record.model_dump_json().encode())
    return record


def written_pieces(folder: Location) -> list[StoredPiece]:
    """The pieces that a run wrote which did not come to its end."""
    names = [info.url.rsplit("/", 1)[-1] for info in list_folder(folder)]
    records = [name for name in names if name.endswith(".json") and name != "manifest.json"]
    return [StoredPiece.model_validate_json(read_bytes(folder / name)) for name in records]


def read_outputs(folder: Location) -> OutputManifest | None:
    """The manifest in a folder of outputs; None where they are not whole."""
    try:
        return OutputManifest.model_validate_json(read_bytes(folder / "manifest.json"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputError(f"remove {folder} and run again: its manifest.json does not read ({error})") from None


def write_outputs(folder: Location, manifest: OutputManifest) -> None:
    """Make the outputs whole."""
    write_whole(folder / "manifest.json", manifest.model_dump_json(indent=1).encode())


class TeacherRows:
    """A teacher's outputs for the rows of one split, by number, as `PreparedRows` has the rows; for one thread."""

    def __init__(self, folder: Location, manifest: OutputManifest, split: Split, cache: Cache) -> None:
        self._folder, self._manifest, self._cache = folder, manifest, cache
        self._pieces = [piece for piece in manifest.pieces if piece.piece.split == split]
        self._ends = np.cumsum([piece.piece.rows for piece in self._pieces], dtype=np.int64)
        self._arrays: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._pieces else 0

    def vectors(self, rows_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """vectors_BTD of the rows' texts, the query first, in float32 whatever they are stored in."""
        if self._manifest.output != "vectors":
            raise InputError(f"give a teacher with output: vectors; {self._manifest.teacher} has scores alone")
        shape = (len(rows_B), 1 + self._manifest.num_documents, self._manifest.width or 0)
        vectors_BTD = np.empty(shape, np.float32)
        for number, at, inside in by_part(rows_B, self._ends):
            piece = self._pieces[number]
            assert piece.places is not None, "a piece with vectors says which text has which"
            vectors_BTD[at] = self._array(piece.values)[self._array(piece.places)[inside]]
        return vectors_BTD

    def scores(self, rows_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """scores_BK of each query and its documents; of a teacher with vectors their cosines."""
        if self._manifest.output == "vectors":
            return cosines(self.vectors(rows_B))
        scores_BK = np.empty((len(rows_B), self._manifest.num_documents), np.float32)
        for number, at, inside in by_part(rows_B, self._ends):
            scores_BK[at] = self._array(self._pieces[number].values)[inside]
        return scores_BK

    def _array(self, file: StoredFile) -> NDArray[Any]:
        if file.name not in self._arrays:
            found = self._cache.fetch(self._folder / file.name, file.sha256, file.bytes)
            self._arrays[file.name] = np.load(found, mmap_mode="r", allow_pickle=False)
        return self._arrays[file.name]


def cosines(vectors_BTD: NDArray[np.float32]) -> NDArray[np.float32]:
    """scores_BK: of each row's first vector and the others; 0 for one of length 0, as in sentence-transformers."""
    lengths_BT = np.linalg.norm(vectors_BTD, axis=2)
    units_BTD = vectors_BTD / np.where(lengths_BT > 0, lengths_BT, 1)[:, :, None]
    return np.asarray(np.einsum("bd,bkd->bk", units_BTD[:, 0], units_BTD[:, 1:]), np.float32)
