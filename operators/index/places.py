"""Where the vectors of a shard stand in the embeddings now.

An id map says which row each vector was built from. When a file changes, most of its rows stand in another fragment
afterwards: these are the shard's moves, a file beside it. So every live vector stands for one known row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from operators.errors import InputError
from operators.index.snapshot import Moves, ShardRecord, shard_file
from operators.storage import Location, open_input, read_bytes, write_whole

_SCHEMA = pa.schema([("ordinal", pa.int64()), ("fragment", pa.string()), ("row", pa.int32())])


@dataclass(frozen=True, slots=True)
class Claims:
    """Rows of one fragment that a shard holds already, ascending, and the vector of each."""

    rows: NDArray[np.int32]
    ordinals: NDArray[np.int64]

    def where(self, mask: NDArray[np.bool_]) -> Claims:
        """Some of them."""
        return Claims(self.rows[mask], self.ordinals[mask])


def id_map(index: Location, shard: ShardRecord) -> pa.Table:
    """The whole id map of a shard, in memory."""
    with open_input(shard_file(index, shard.key, "ids.parquet")) as stream:
        return pq.ParquetFile(stream, page_checksum_verification=True).read()


def moved_rows(index: Location, shard: ShardRecord) -> pa.Table | None:
    """Ordinal, fragment and row of the vectors that stand elsewhere than the id map says; None where none does."""
    if shard.moves is None:
        return None
    payload = read_bytes(index / shard.moves.path)
    if hashlib.sha256(payload).hexdigest() != shard.moves.sha256:
        raise InputError(f"run index with update.check=hashes: {index / shard.moves.path} is not what was written")
    return pq.read_table(pa.BufferReader(payload))


def write_moves(
    index: Location, shard: ShardRecord, dead: NDArray[np.int64], claims: Mapping[str, Claims]
) -> Moves | None:
    """Keep where a shard's vectors stand now, in a file named by its content: those that moved now, and before."""
    before = moved_rows(index, shard)
    tables = [
        pa.table([pa.array(c.ordinals), pa.array([key] * len(c.rows), pa.string()), pa.array(c.rows)], schema=_SCHEMA)
        for key, c in claims.items()
        if len(c.rows)
    ]
    if before is not None:
        now = np.concatenate([dead, *[c.ordinals for c in claims.values()]])
        tables.append(before.filter(pc.invert(pc.is_in(before["ordinal"], value_set=pa.array(now, pa.int64())))))
    moves = pa.concat_tables(tables).sort_by("ordinal") if tables else _SCHEMA.empty_table()
    if not moves.num_rows:
        return None
    sink = pa.BufferOutputStream()
    pq.write_table(moves, sink, compression="zstd")
    payload = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(payload).hexdigest()
    path = f"shards/{shard.key}.moved-{digest[:16]}.parquet"
    write_whole(index / path, payload)
    return Moves(path=path, rows=moves.num_rows, sha256=digest)
