"""Find document ids that come more than once in a corpus too large for one process.

The ids are hashed to 64 bits where they are read, and the hashes are compared partition by partition of the hash space,
so memory is bounded by one partition (66 bytes an id at its peak) whatever the corpus. Equal hashes are suspects only:
among a billion ids two different ones meet with a probability of 3 %, so the ids themselves decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Ids compared at once: 66 bytes each at the peak (measured), so a partition takes about 1.3 GB.
IDS_PER_PARTITION = 20_000_000


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A place in the corpus: the `position`-th row (0-based, all rows counted) of the `ordinal`-th part."""

    ordinal: int
    position: int


def hash_ids(doc_ids: pa.Array) -> NDArray[np.uint64]:
    """64-bit hashes of string ids (no nulls), the same on every machine."""
    import pandas as pd  # here: half a second for the processes that hash, and for no other

    values = doc_ids.to_numpy(zero_copy_only=False).astype(object)
    hashes: NDArray[np.uint64] = pd.util.hash_array(values, categorize=False)
    return hashes


def find_suspects(
    parts: Iterable[tuple[int, NDArray[np.int64], NDArray[np.uint64]]], partition: int, num_partitions: int
) -> dict[int, list[int]]:
    """Positions by ordinal of the rows whose hash, of those in this partition of the hash space, comes more than once.

    Each part is its ordinal in source order, the positions of its rows, and their hashes.
    """
    hashes, ordinals, positions = [], [], []
    for ordinal, positions_N, hashes_N in parts:
        inside = hashes_N % np.uint64(num_partitions) == partition
        hashes.append(hashes_N[inside])
        positions.append(positions_N[inside])
        ordinals.append(np.full(int(inside.sum()), ordinal, np.int64))
    if not hashes:
        return {}
    all_hashes = np.concatenate(hashes)
    order = np.argsort(all_hashes, kind="stable")
    ordered = all_hashes[order]
    same = ordered[1:] == ordered[:-1]
    is_suspect = np.concatenate([same, [False]]) | np.concatenate([[False], same]) if len(ordered) else same
    found: dict[int, list[int]] = {}
    all_ordinals, all_positions = np.concatenate(ordinals), np.concatenate(positions)
    for place in order[is_suspect]:
        found.setdefault(int(all_ordinals[place]), []).append(int(all_positions[place]))
    return {ordinal: sorted(places) for ordinal, places in found.items()}


def later_occurrences(ids: Iterable[tuple[str, Occurrence]]) -> dict[Occurrence, str]:
    """Of suspects with their ids, those whose id came before in (ordinal, position) order, with the id."""
    later: dict[Occurrence, str] = {}
    seen: set[str] = set()
    for doc_id, place in sorted(ids, key=lambda item: (item[1].ordinal, item[1].position)):
        if doc_id in seen:
            later[place] = doc_id
        seen.add(doc_id)
    return later
