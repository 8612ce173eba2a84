"""Rows that were left out because another unit had their ids, and whether that unit still has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.corpus.duplicates import hash_ids, is_among
from operators.corpus.reading import DUPLICATE_ID
from operators.storage import Location
from operators.store.fragments import FragmentRecord, data_file, read_table, rejected_file

_THREADS = 16


def doubtful_units(dataset: Location, gone: Sequence[FragmentRecord], kept: Iterable[FragmentRecord]) -> set[str]:
    """Digests of the kept units that left rows out whose ids stood in fragments which are gone.

    By hashes, so one that has not lost anything may be among them. So are all that left rows out where a file of a gone
    fragment does not read, and one whose own rejected rows do not. Memory: 8 bytes a row that was left out, and the ids
    of a few fragments.
    """
    leaving = [record for record in kept if record.rejected]
    if not gone or not leaving:
        return set()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="left-out") as threads:
        hashes = list(threads.map(lambda record: _left_out(dataset, record), leaving))
        wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *(own for own in hashes if own is not None)]))
        try:
            found = list(threads.map(lambda record: _held(dataset, record, wanted), gone if len(wanted) else ()))
        except (OSError, pa.ArrowInvalid, KeyError):
            found = [wanted]
    lost = np.unique(np.concatenate([np.empty(0, np.uint64), *found]))
    return {
        record.fragment.unit.digest
        for record, own in zip(leaving, hashes, strict=True)
        if own is None or is_among(own, lost).any()
    }


def _left_out(dataset: Location, record: FragmentRecord) -> NDArray[np.uint64] | None:
    """Hashes of the ids that a fragment left out; None where its rejected rows do not read."""
    try:
        rejected = read_table(rejected_file(dataset, record.key), ["doc_id", "reason"])
    except (OSError, pa.ArrowInvalid):
        return None
    ids = rejected["doc_id"].filter(pc.equal(rejected["reason"], DUPLICATE_ID)).combine_chunks()
    return hash_ids(ids.drop_null())


def _held(dataset: Location, record: FragmentRecord, wanted: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Those of some hashes (ascending) that are of ids which a fragment holds."""
    held = hash_ids(read_table(data_file(dataset, record.key), ["doc_id"])["doc_id"].combine_chunks())
    return held[is_among(held, wanted)]
