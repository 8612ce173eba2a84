"""The held-out queries of an index, kept beside it so that every snapshot is measured with the same."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from operators.index.sampling import Drawn
from operators.index.truth import HeldOut
from operators.index.vectors import Vectors
from operators.storage import Location, exists, open_input, write_whole

DRAWN = "documents drawn at random, none allowed to find itself"


def held_out_file(index: Location, name: str) -> Location:
    """Where queries lie; `name` says how they were chosen."""
    return index / "recall" / f"queries-{name}.parquet"


def store_held_out(index: Location, name: str, vectors_QD: Vectors, ids: pa.Table | None, source: str) -> None:
    """Keep queries; `ids` (doc_id, chunk) of the documents that they are, None for real queries."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_QD.reshape(-1)), vectors_QD.shape[1])
    columns = {"vector": column} | ({n: ids[n] for n in ("doc_id", "chunk")} if ids is not None else {})
    sink = pa.BufferOutputStream()
    table = pa.table(columns).replace_schema_metadata({"source": source})
    pq.write_table(table, sink, compression="zstd")
    write_whole(held_out_file(index, name), sink.getvalue())


def load_held_out(index: Location, name: str, k: int) -> HeldOut | None:
    """The queries of this name, or None where they were never chosen."""
    location = held_out_file(index, name)
    if not exists(location):
        return None
    with open_input(location) as stream:
        table = pq.read_table(stream)
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
