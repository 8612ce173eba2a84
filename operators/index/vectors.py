"""The vectors of an embeddings dataset, in the form that faiss takes, with every one of them checked.

Shapes: N vectors of D components; binary vectors are D / 8 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.errors import InputError
from operators.index.spec import Metric
from operators.storage import Location, open_input
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord, data_file

Vectors = NDArray[Any]  # float32 [N, D], or uint8 [N, D / 8] for binary vectors
ROWS_PER_BLOCK = 16384
VECTORS_AT_ONCE = 32768  # queries; the more look into each list, the less a list's decoding costs each of them


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """How stored vectors become those that are searched; the same for documents and queries."""

    dim: int
    dtype: str  # of the dataset: float32, float16, int8, binary
    scale: float | None  # int8: vector = code * scale
    metric: Metric

    @staticmethod
    def of(identity: Identity, metric: Metric) -> VectorSpace:
        """The space of a dataset's vectors under a metric."""
        return VectorSpace(identity.dim, identity.dtype, identity.scale, metric)

    @property
    def width(self) -> int:
        """Numbers in a stored vector."""
        return self.dim // 8 if self.dtype == "binary" else self.dim

    def from_column(self, column: pa.ChunkedArray | pa.Array, where: str) -> Vectors:
        """A column of stored vectors; raises InputError naming `where` and the row of a vector that cannot be used."""
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        parts = [self._from_chunk(chunk, where) for chunk in chunks if len(chunk)]
        if not parts:
            return np.empty((0, self.width), np.uint8 if self.dtype == "binary" else np.float32)
        return self.prepared(np.concatenate(parts) if len(parts) > 1 else parts[0], where)

    def prepared(self, vectors: Vectors, where: str) -> Vectors:
        """Vectors checked, and scaled to length 1 for cosine; float32 [N, D] or uint8 [N, D / 8]."""
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise InputError(
                f"give vectors of {self.width} numbers: {where} has shape {vectors.shape}; "
                "a dataset or index of another model or size does not go with this one"
            )
        if self.dtype == "binary":
            return np.ascontiguousarray(vectors, np.uint8)
        values_ND = np.ascontiguousarray(vectors, np.float32)
        # One pass: a sum is finite exactly if all its terms are (they are far from the largest float).
        squares_N = np.einsum("nd,nd->n", values_ND, values_ND)
        if not np.isfinite(squares_N).all():
            row = int(np.flatnonzero(~np.isfinite(squares_N))[0])
            raise InputError(
                f"embed {where} again, or remove its row {row}: that vector holds NaN or infinity "
                f"({int((~np.isfinite(squares_N)).sum())} such rows there)"
            )
        if self.metric == "cosine":
            norms_N = np.sqrt(squares_N)
            norms_N[norms_N == 0] = 1
            values_ND = values_ND / norms_N[:, None]
        return values_ND

    def queries(self, given: Any, where: str, scale: float | None = None) -> Vectors:
        """Query vectors [Q, D] of any form in the one that is searched.

        Of int8 datasets whole numbers are codes, of the dataset's scale or of `scale`, and fractional ones vectors. Of
        binary ones whole numbers are packed bits if there are D / 8 of them; D numbers are vectors, whose signs count.
        Raises InputError for what is neither, and what `prepared` refuses.
        """
        values = np.asarray(given)
        if values.dtype.kind not in "iufb" or values.ndim != 2:
            raise InputError(f"give vectors of {self.dim} numbers: {where} has {values.dtype} of shape {values.shape}")
        is_whole = values.dtype.kind in "iu"
        low, high = (0, 255) if self.dtype == "binary" else (-128, 127)
        if self.dtype == "binary" and values.shape[1] == self.dim:
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise InputError(f"mend {where}: a vector holds NaN or infinity")
            return np.packbits(values > 0, axis=1, bitorder="big")
        if (self.dtype == "int8" and is_whole) or self.dtype == "binary":
            if not is_whole or (values.size and (values.min() < low or values.max() > high)):
                what = "packed bits" if self.dtype == "binary" else "codes, or fractional numbers for plain vectors"
                raise InputError(f"give whole numbers from {low} to {high} as {what}: {where} has others")
            if self.dtype == "int8":
                factor = scale if scale is not None else self.scale
                assert factor is not None, "an int8 dataset has a scale"
                values = values.astype(np.float32) * np.float32(factor)
        return self.prepared(values, where)

    def queries_of_column(self, column: pa.ChunkedArray, where: str, scale: float | None = None) -> Vectors:
        """A column of query vectors, as `queries` takes them."""
        parts = [self._plain(chunk, where) for chunk in column.chunks if len(chunk)]
        if not parts:
            return np.empty((0, self.width), np.uint8 if self.dtype == "binary" else np.float32)
        if len({part.shape[1] for part in parts}) > 1:
            raise InputError(f"give vectors of one length: {where} has {sorted({p.shape[1] for p in parts})}")
        return self.queries(np.concatenate(parts), where, scale)

    def _from_chunk(self, chunk: pa.Array, where: str) -> Vectors:
        values = self._plain(chunk, where)
        if self.dtype == "int8":
            assert self.scale is not None, "an int8 dataset has a scale"
            return values.astype(np.float32) * np.float32(self.scale)
        return values if self.dtype == "binary" else values.astype(np.float32, copy=False)

    def _plain(self, chunk: pa.Array, where: str) -> Vectors:
        if chunk.null_count:
            raise InputError(f"embed {where} again: {chunk.null_count} of its vectors are missing (null)")
        if not pa.types.is_fixed_size_list(chunk.type):
            lengths = np.unique(chunk.value_lengths().to_numpy(zero_copy_only=False))
            if len(lengths) != 1:
                raise InputError(f"give vectors of one length: {where} has lengths {lengths[:5].tolist()}")
        flat = chunk.flatten()
        if flat.null_count:
            raise InputError(f"embed {where} again: a component of a vector is missing (null)")
        width = len(flat) // len(chunk)
        values: Vectors = flat.to_numpy(zero_copy_only=False).reshape(len(chunk), width)
        return values


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of one fragment; `start` is the number of the first of them in its data file.

    Where the dataset has no dense vectors, they are [N, 0].
    """

    start: int
    table: pa.Table  # the columns asked for, without the vectors
    vectors: Vectors


def read_blocks(
    dataset: Location,
    identity: Identity,
    space: VectorSpace,
    record: FragmentRecord,
    columns: Sequence[str],
    rows_per_block: int = ROWS_PER_BLOCK,
) -> Iterator[Block]:
    """A fragment's vectors in order, with other columns beside them; memory: one row group and one block.

    Raises InputError where the file is not one of this dataset, is damaged, or holds what cannot be indexed.
    """
    with open_fragment(dataset, identity, record) as file:
        where, start = f"data/{record.key}.parquet", 0
        dense = ["embedding"] if identity.dim else []
        for batch in file.iter_batches(rows_per_block, columns=[*columns, *dense]):
            table = pa.Table.from_batches([batch])
            vectors = (
                space.from_column(table["embedding"], where) if dense else np.empty((table.num_rows, 0), np.float32)
            )
            yield Block(start, table.drop_columns(dense), vectors)
            start += len(vectors)


@contextmanager
def open_fragment(dataset: Location, identity: Identity, record: FragmentRecord) -> Iterator[pq.ParquetFile]:
    """A fragment's data file, checked to be what dataset and snapshot say; faults while it is read are told plainly."""
    where = f"data/{record.key}.parquet"
    try:
        with open_input(data_file(dataset, record.key)) as stream:
            file = pq.ParquetFile(stream)
            _check_file(file, identity, record, where)
            yield file
    except FileNotFoundError as error:
        raise InputError(f"run embed again: {where} is gone from {dataset.url}, but its snapshot names it") from error
    except pa.ArrowInvalid as error:
        raise InputError(f"remove {where} and run embed again: it does not read ({error})") from error


def _check_file(file: pq.ParquetFile, identity: Identity, record: FragmentRecord, where: str) -> None:
    schema = file.schema_arrow
    stored = json.loads((schema.metadata or {}).get(b"embedfleet.dataset", b"{}"))
    for name in ("fingerprint", "dim", "dtype", "scale"):
        if name in stored and stored[name] != getattr(identity, name):
            raise InputError(
                f"embed into an output of its own: {where} has {name} {stored[name]}, "
                f"its dataset has {getattr(identity, name)}; vectors of two models cannot share an index"
            )
    if file.metadata.num_rows != record.chunks:
        raise InputError(f"run verify: {where} has {file.metadata.num_rows} vectors, its snapshot {record.chunks}")
