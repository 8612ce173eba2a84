"""Which shards an index has: how many vectors fit a builder's memory, and which fragments go together.

A shard is a run of whole fragments in the order of the source, so a file that changes touches one shard or two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from operators.errors import InputError
from operators.index.building import FragmentPart
from operators.index.library import faiss
from operators.index.postings import ENTRY_BUILD_BYTES
from operators.index.spec import IndexSpec, footprint, make_index, take_apart
from operators.index.training import num_lists
from operators.store.fragments import FragmentRecord

_PROCESS_BYTES = 450 << 20  # Python, Arrow, faiss and Ray before the first vector
_FEWEST_ROWS, _SHARDS_WANTED = 250_000, 16
# faiss's lists grow by doubling, so codes take up to twice their size while a shard is built.
_GROWTH = 2.0


class Sharding(BaseModel):
    """How the index is cut into shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["document", "list"] = Field(
        default="document",
        description="document: a shard has all of some fragments, and every query asks every shard; "
        "list: a shard has some inverted lists of all documents, and a query asks few shards",
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        description="vectors of a shard; null = a sixteenth of all, at least 250,000, at most what memory_bytes holds",
    )
    memory_bytes: int = Field(
        default=4 << 30, ge=600 << 20, description="memory that building one shard may take, the process included"
    )


def fixed_bytes(spec: IndexSpec, block_rows: int, queries: int) -> int:
    """What a builder takes before it holds a code: the process, the trained index, a block of vectors, the queries."""
    if not spec.dim:
        return _PROCESS_BYTES
    index = make_index(spec)
    lists = num_lists(index, spec)
    centroids = lists * spec.dim * 4
    vector = spec.dim / 8 if spec.is_binary else spec.dim * 4
    # A block is there as read, as checked, as transformed; its comparison with the queries is a matrix.
    block = block_rows * (3 * vector + 200) + queries * vector
    return int(_PROCESS_BYTES + 1.3 * centroids + block + lists * _padding_per_list(index, spec))


def _padding_per_list(index: Any, spec: IndexSpec) -> float:
    """4-bit codes lie in blocks of 32 vectors, the last of each list half empty in the mean."""
    if spec.is_binary:
        return 0.0
    core = take_apart(index).core
    return 16.0 * core.code_size if isinstance(core, (faiss.IndexIVFFastScan,)) else 0.0


def bytes_per_row(spec: IndexSpec, records: Sequence[FragmentRecord], is_sparse: bool) -> float:
    """Memory that a builder takes for each vector of its shard."""
    each = 0.0
    if spec.dim:
        per_vector = footprint(make_index(spec), spec)
        each = _GROWTH * (per_vector.hot + per_vector.cold)
    if is_sparse:
        # an entry takes 6 bytes of a data file, so that there are no more of them than this
        entries = sum(record.bytes for record in records) / 6 / max(1, sum(record.chunks for record in records))
        each += ENTRY_BUILD_BYTES * entries
    return each


def shard_rows(
    sharding: Sharding, spec: IndexSpec, records: Sequence[FragmentRecord], queries: int, is_sparse: bool = False
) -> int:
    """Vectors of a shard. Raises InputError where a shard of that size, or of one fragment, does not fit the memory."""
    each = bytes_per_row(spec, records, is_sparse)
    largest = max((record.chunks for record in records), default=0)
    free = sharding.memory_bytes - fixed_bytes(spec, min(16384, max(largest, 1)), queries)
    fitting = int(free / each)
    asked = sharding.rows or min(max(sum(r.chunks for r in records) // _SHARDS_WANTED, _FEWEST_ROWS), max(fitting, 1))
    needed = max(asked, largest) if sharding.by == "document" else asked
    if needed > fitting:
        least = sharding.memory_bytes - free + int(needed * each) + 1
        what = f"shards.rows {asked:,}" if needed == asked else f"a fragment of {largest:,} vectors"
        raise InputError(
            f"set shards.memory_bytes to {least:,} or more: {what} with {each:.0f} bytes a vector and "
            f"{sharding.memory_bytes - free:,} bytes for the rest does not fit {sharding.memory_bytes:,}"
        )
    return asked


def group_fragments(parts: Sequence[FragmentPart], rows: int) -> list[tuple[FragmentPart, ...]]:
    """Consecutive fragments in groups of about equal size, of at most `rows` vectors where no fragment is larger."""
    parts = [part for part in parts if part.num_rows]
    total = sum(part.num_rows for part in parts)
    if not total:
        return []
    even = total / math.ceil(total / rows)
    groups: list[tuple[FragmentPart, ...]] = []
    group: list[FragmentPart] = []
    held = done = 0
    for part in parts:
        is_past = done + held + part.num_rows / 2 > even * (len(groups) + 1)
        if group and (held + part.num_rows > rows or is_past):
            groups.append(tuple(group))
            done, group, held = done + held, [], 0
        group.append(part)
        held += part.num_rows
    return [*groups, tuple(group)]
