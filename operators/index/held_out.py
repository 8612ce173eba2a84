"""The held-out queries of an index, kept beside it so that every snapshot is measured with the same."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from operators.index.sampling import Drawn
from operators.index.truth import HeldOut
from operators.index.vectors import Vectors
from operators.storage import Location, create_exclusive, read_bytes, write_whole

DRAWN = "documents drawn at random, none allowed to find itself"


def held_out_file(index: Location, name: str) -> Location:
    """Where queries lie; `name` says how they were chosen."""
    return index / "recall" / f"queries-{name}.parquet"


def store_held_out(index: Location, name: str, vectors_QD: Vectors, ids: pa.Table | None, source: str) -> None:
    """Keep queries; `ids` (doc_id, chunk) of the documents that they are, None for real queries.

    Where another run was first its queries are kept, unless they are damaged.
    """
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_QD.reshape(-1)), vectors_QD.shape[1])
    columns = {"vector": column} | ({n: ids[n] for n in ("doc_id", "chunk")} if ids is not None else {})
    sink = pa.BufferOutputStream()
    table = pa.table(columns).replace_schema_metadata({"source": source})
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    stored = sink.getvalue().to_pybytes()
    if not create_exclusive(held_out_file(index, name), stored) and load_held_out(index, name, 1) is None:
        write_whole(held_out_file(index, name), stored)


def load_held_out(index: Location, name: str, k: int) -> HeldOut | None:
    """The queries of this name, or None where they were never chosen or are damaged."""
    try:
        payload = read_bytes(held_out_file(index, name))
    except FileNotFoundError:
        return None
    try:
        table = pq.read_table(pa.BufferReader(payload), page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError):
        return None
    column = table["vector"].combine_chunks()
    values = column.flatten().to_numpy().reshape(-1, table.schema.field("vector").type.list_size)
    ids = table.select(["doc_id", "chunk"]) if "doc_id" in table.column_names else None
    return HeldOut.of(values, ids, table.schema.metadata[b"source"].decode(), k)


def of_drawn(parts: list[tuple[Vectors, pa.Table]]) -> tuple[Vectors, pa.Table]:
    """The queries of several fragments as one set."""
    return np.concatenate([vectors for vectors, _ in parts]), pa.concat_tables([ids for _, ids in parts])


def split_drawn(drawn: list[Drawn]) -> tuple[Vectors, tuple[Vectors, pa.Table]]:
    """Training vectors, and held-out queries with their ids."""
    train = np.concatenate([part.train for part in drawn])
    return train, of_drawn([(part.queries, part.query_ids) for part in drawn])
