"""Embeddings datasets of given vectors, as `embed` would have written them, without a model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.embedder.quantization import OutputDtype, calibrate_scale, to_arrow
from operators.embedder.sparse_vectors import SparseVectors
from operators.storage import Location, write_whole
from operators.store.dataset import Identity, encode_schema
from operators.store.fragments import FragmentRecord, write_fragment
from operators.store.snapshots import Snapshot, publish
from operators.work.fragment import REJECTED_SCHEMA, Counts, Extent, Fragment, FragmentBatch, SourceFile, Unit

KEEP = pa.schema([("lang", pa.string()), ("year", pa.int64())])
LANGS = ("en", "de", "fr", "ja")


@dataclass(frozen=True)
class Documents:
    """Documents with ready vectors; `versions` change where a text does."""

    ids: Sequence[str]
    vectors: NDArray[np.float32]
    versions: NDArray[np.int64]
    sparse: Any = None  # a scipy matrix [N, ids]

    @staticmethod
    def of(vectors: NDArray[np.float32], prefix: str = "doc-", sparse: Any = None) -> Documents:
        """Documents numbered from 0."""
        ids = [f"{prefix}{i}" for i in range(len(vectors))]
        return Documents(ids, vectors, np.zeros(len(vectors), np.int64), sparse)

    def take(self, rows: Any) -> Documents:
        """Some of them."""
        rows = np.arange(len(self.ids))[rows]
        sparse = self.sparse[rows] if self.sparse is not None else None
        return Documents([self.ids[i] for i in rows], self.vectors[rows], self.versions[rows], sparse)


def clustered(count: int, dim: int, seed: int = 0, clusters: int = 0) -> NDArray[np.float32]:
    """Vectors of length 1 around Gaussian clusters, with a power-law spectrum in rotated axes."""
    rng = np.random.default_rng(seed)
    shape = np.random.default_rng(12345)  # the clusters are the same for every seed: queries of another draw fit
    clusters = clusters or max(4, min(2000, count // 100))
    spectrum = (1 + np.arange(dim)) ** -0.5
    rotation = np.linalg.qr(shape.standard_normal((dim, dim)))[0].astype(np.float32)
    centers = (shape.standard_normal((clusters, dim)) * spectrum).astype(np.float32)
    out = np.empty((count, dim), np.float32)
    for start in range(0, count, 65536):
        size = min(65536, count - start)
        noise = rng.standard_normal((size, dim), dtype=np.float32) * (0.5 * spectrum).astype(np.float32)
        block = (centers[rng.integers(0, clusters, size)] + noise) @ rotation
        out[start : start + size] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return out


def identity_of(dim: int, dtype: OutputDtype = "float32", scale: float | None = None, **changes: Any) -> Identity:
    """The identity of a dataset of such vectors."""
    identity = Identity("f" * 64, "none", dim, dtype, True, scale, encode_schema(KEEP), 0)
    return dataclasses.replace(identity, **changes)


def write_dataset(
    folder: str,
    files: Iterable[tuple[str, Documents]],
    dtype: OutputDtype = "float32",
    rows_per_fragment: int = 1000,
    sparse_dim: int = 0,
) -> Snapshot:
    """Write every file's documents as fragments and publish them as the newest snapshot; what is there is kept."""
    dataset = Location(folder)
    records: list[FragmentRecord] = []
    identity: Identity | None = None
    for path, documents in files:
        if identity is None:
            dim = documents.vectors.shape[1]
            scale = calibrate_scale(documents.vectors) if dtype == "int8" else None
            identity = identity_of(dim, dtype, scale, sparse_dim=sparse_dim)
        records += write_file(dataset, identity, path, documents, rows_per_fragment)
    assert identity is not None, "give at least one file"
    write_whole(dataset / "dataset.json", json.dumps(dataclasses.asdict(identity)).encode())
    return publish(dataset, records)


def write_file(
    dataset: Location, identity: Identity, path: str, documents: Documents, rows_per_fragment: int
) -> list[FragmentRecord]:
    """The fragments of one source file; their keys follow from its content."""
    content = hashlib.blake2b(documents.vectors.tobytes() + "".join(documents.ids).encode(), digest_size=8)
    unit = Unit.of((Extent(SourceFile(path, len(documents.ids), content.hexdigest())),), "test")
    parts = max(1, -(-len(documents.ids) // rows_per_fragment))
    records = []
    for part in range(parts):
        rows = documents.take(slice(part * rows_per_fragment, (part + 1) * rows_per_fragment))
        records.append(_write_part(dataset, identity, path, rows, Fragment(unit, part, part == parts - 1)))
    return records


def _vectors(documents: Documents, identity: Identity) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    if identity.dim:
        columns["embedding"] = to_arrow(documents.vectors, identity.dtype, identity.scale)
    if identity.sparse_dim:
        matrix = documents.sparse
        lengths = np.diff(matrix.indptr).astype(np.int64)
        columns |= SparseVectors(lengths, matrix.indices.astype(np.int32), matrix.data).to_arrow()
    return columns


def _write_part(
    dataset: Location, identity: Identity, path: str, documents: Documents, fragment: Fragment
) -> FragmentRecord:
    count = len(documents.ids)
    texts = zip(documents.ids, documents.versions.tolist(), strict=True)
    hashes = [hashlib.blake2b(f"{i}/{v}".encode(), digest_size=16).digest() for i, v in texts]
    numbers = [int(i.rsplit("-", 1)[-1]) for i in documents.ids]
    table = pa.table(
        {
            "doc_id": pa.array(list(documents.ids), pa.string()),
            "chunk": pa.array([0] * count, pa.int32()),
            "text_hash": pa.array(hashes, pa.binary(16)),
            "num_tokens": pa.array([5] * count, pa.int32()),
            "truncated": pa.array([False] * count),
            "char_start": pa.array([0] * count, pa.int64()),
            "char_end": pa.array([10] * count, pa.int64()),
            "source_path": pa.array([path] * count),
            "source_row": pa.array(range(count), pa.int64()),
            "lang": pa.array([LANGS[n % 4] for n in numbers], pa.string()),
            "year": pa.array([2000 + n % 25 for n in numbers], pa.int64()),
            **_vectors(documents, identity),
        }
    )
    batch = FragmentBatch(fragment, table, REJECTED_SCHEMA.empty_table(), Counts(rows=count, chunks=count))
    return write_fragment(dataset, identity, batch)
