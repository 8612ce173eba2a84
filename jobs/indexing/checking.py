"""verify, of an index: the report and the exit code."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from operators.index.snapshot import read_index
from operators.index.verification import verify_index
from operators.storage import locate
from operators.store.snapshots import snapshot_numbers

_SHOWN = 50


class IndexCheck(BaseModel):
    """The config of verify, of an index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: str = Field(min_length=1, description="the output of an index job")
    snapshot: int | None = Field(default=None, ge=1, description="snapshot of the index; null = the newest")
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="fsspec options of the index and its embeddings, never stored"
    )
    cache_dir: str | None = Field(default=None, description="folder for fetched index files; null = the system's")


def check_index_files(config: IndexCheck) -> int:
    """Print what was proven or what is wrong; 3 where something does not hold."""
    index = locate(config.index, config.storage_options)
    snapshot = read_index(index, config.snapshot)
    dataset = locate(snapshot.identity.embeddings, config.storage_options)
    faults = list(verify_index(index, snapshot, dataset, config.cache_dir))
    for fault in faults[:_SHOWN]:
        print(f"{fault.path} {fault.message}")
    if faults:
        print(f"snapshot {snapshot.number}: {len(faults)} problems in {len(snapshot.shards)} shards: run index again")
        return 3
    print(
        f"snapshot {snapshot.number} holds: {len(snapshot.shards)} shards open, every file is what was written, and "
        f"the {snapshot.num_vectors:,} live rows are those of the embeddings' snapshot {snapshot.embeddings_snapshot}"
    )
    newest = max(snapshot_numbers(dataset), default=0)
    if newest > snapshot.embeddings_snapshot:
        print(f"the embeddings have snapshot {newest} meanwhile: run index to follow them")
    return 0
