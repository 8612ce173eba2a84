"""Prove that an index is whole: its files are those that were written, all shards open, its rows are the dataset's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.corpus.duplicates import hash_ids
from operators.errors import InputError
from operators.index.group import ShardGroup, live_mask
from operators.index.integrity import Fault, find_faults
from operators.index.places import id_map
from operators.index.snapshot import IndexSnapshot
from operators.storage import Location
from operators.store.fragments import data_file, read_table

_COLUMNS = ["doc_id", "chunk", "text_hash"]


class RowSum:
    """What a set of rows adds up to in any order; sets that differ have other sums but for one in 2 ** 64."""

    def __init__(self) -> None:
        self.rows, self._sum = 0, np.uint64(0)

    def add(self, table: pa.Table) -> None:
        """Add rows with their doc_id, chunk and text_hash."""
        names = pc.binary_join_element_wise(table["chunk"].cast(pa.string()), table["doc_id"], "/")
        for batch in pa.table({"name": names, "text": table["text_hash"]}).to_batches():
            products_N = hash_ids(batch["name"]) * (_text_numbers(batch["text"]) | np.uint64(1))
            self._sum = np.uint64((int(self._sum) + int(products_N.sum(dtype=np.uint64))) % 2**64)
        self.rows += table.num_rows

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowSum) and (self.rows, self._sum) == (other.rows, other._sum)

    __hash__ = None  # type: ignore[assignment]  # it changes


def _text_numbers(texts: pa.Array) -> NDArray[np.uint64]:
    content = b"".join(text or bytes(16) for text in texts.to_pylist())
    return np.frombuffer(content, "<u8")[::2]


def verify_index(index: Location, snapshot: IndexSnapshot, dataset: Location, cache: str | None) -> Iterator[Fault]:
    """What is wrong with a snapshot of an index. Memory: one shard, and one fragment without its vectors."""
    faults = find_faults(index, snapshot, "hashes")
    yield from faults
    broken = {fault.shard for fault in faults}
    held = RowSum()
    for number, shard in enumerate(snapshot.shards):
        if number in broken or None in broken:
            continue
        try:
            ShardGroup(index, snapshot, [number], cache)
        except InputError as error:
            yield Fault(f"shards/{shard.key}.faiss", f"does not open: {error}", number)
            continue
        ids, live = id_map(index, shard).select(_COLUMNS), live_mask(index, shard)
        held.add(ids if live is None else ids.filter(pa.array(live)))
    if not faults:
        yield from _compare(held, dataset, snapshot)


def _compare(held: RowSum, dataset: Location, snapshot: IndexSnapshot) -> Iterator[Fault]:
    wanted = RowSum()
    for key in snapshot.fragments:
        try:
            wanted.add(read_table(data_file(dataset, key), _COLUMNS))
        except (OSError, pa.ArrowInvalid) as error:
            gone = isinstance(error, FileNotFoundError)
            what = "is gone from the embeddings: run embed and index" if gone else f"does not read ({error})"
            yield Fault(f"{dataset.url}/data/{key}.parquet", f"{what}; its rows cannot be compared", None)
            return
    if held != wanted:
        yield Fault(
            f"snapshots/{snapshot.number:08d}.json",
            f"has {held.rows:,} live rows, the embeddings have {wanted.rows:,}, and they are not the same: run index "
            "with update.mode=rebuild",
            None,
        )
