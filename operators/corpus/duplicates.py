"""Find document ids that come more than once in a corpus too large for one process.

The ids are hashed to 64 bits where they are read. Hashes that come twice point out the rows that may be duplicates
(operators.store.id_check); the ids of these rows decide.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# A row that may be a duplicate: the `position`-th (0-based, all rows counted) of the `ordinal`-th place of the corpus.
CANDIDATES = pa.schema([("doc_id", pa.string()), ("ordinal", pa.int64()), ("position", pa.int64())])

NAMED = 100  # of the rows that are duplicates, those whose ids a complaint needs
_SHOWN = 5


def hash_ids(doc_ids: pa.Array) -> NDArray[np.uint64]:
    """64-bit hashes of string ids (no nulls), the same on every machine."""
    import pandas as pd  # here: half a second for the processes that hash, and for no other

    values = doc_ids.to_numpy(zero_copy_only=False).astype(object)
    hashes: NDArray[np.uint64] = pd.util.hash_array(values, categorize=False)
    return hashes


def repeated_hashes(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Of ascending hashes those that come more than once (a hash that comes three times comes twice here)."""
    repeated: NDArray[np.uint64] = hashes[1:][hashes[1:] == hashes[:-1]]
    return repeated


def common_hashes(some: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes that stand in both of two ascending arrays."""
    few, many = (some, others) if len(some) <= len(others) else (others, some)
    if not len(few):
        return few
    place = np.searchsorted(many, few)
    place[place == len(many)] = 0  # beyond the last: compared with the first, which is smaller
    common: NDArray[np.uint64] = few[many[place] == few]
    return common


def is_among(hashes: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """For each hash whether it is one of the `wanted` ones, which ascend."""
    if not len(wanted):
        return np.zeros(len(hashes), bool)
    place = np.searchsorted(wanted, hashes)
    place[place == len(wanted)] = 0
    found: NDArray[np.bool_] = wanted[place] == hashes
    return found


def later_occurrences(candidates: pa.Table) -> pa.Table:
    """Of `CANDIDATES` in any order those whose id came before in the order of (ordinal, position), in that order."""
    ordered = candidates.sort_by([("doc_id", "ascending"), ("ordinal", "ascending"), ("position", "ascending")])
    if ordered.num_rows < 2:
        return candidates.schema.empty_table()
    ids = ordered["doc_id"].combine_chunks()
    is_later = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    return ordered.slice(1).filter(is_later).sort_by([("ordinal", "ascending"), ("position", "ascending")])


def complaint(later: pa.Table) -> str:
    """What is wrong with rows (`CANDIDATES`) whose id came before; at least the first `NAMED` have their ids."""
    ids = later["doc_id"].drop_null().unique().to_pylist()
    shown = ", ".join(repr(doc_id) for doc_id in ids[:_SHOWN])
    return (
        f"make the ids unique, or set source.duplicates to keep_first or keep_all: {later.num_rows:,} rows have an id "
        f"that came before ({shown}{', ...' if len(ids) > _SHOWN or later.num_rows > NAMED else ''})"
    )
