"""vacuum: remove files that no kept snapshot names, and old snapshots, of an embeddings dataset or of an index.

    python -m jobs vacuum CONFIG.yaml [vacuum.grace_hours=168] [vacuum.keep_snapshots=3]

Takes the config of `embed` or of `index`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from jobs.embedding.config import EmbedConfig as Config
from jobs.embedding.config import Retention
from jobs.indexing.config import IndexConfig
from operators.errors import InputError
from operators.storage import locate
from operators.store.dataset import read_identity
from operators.store.vacuum import Removed, vacuum


def config_of(values: Mapping[str, Any]) -> type[BaseModel]:
    """Which job's config these keys are."""
    return IndexConfig if "embeddings" in values else Config


def run(config: Config | IndexConfig) -> int:
    """Delete what nothing needs; returns the exit code."""
    if isinstance(config, IndexConfig):
        return _vacuum_index(config)
    dataset = locate(config.output.path, config.output.storage_options)
    if read_identity(dataset) is None:
        raise InputError(f"check output.path: there is no embeddings dataset at {dataset.url}")
    _tell(vacuum(dataset, config.vacuum.keep_snapshots, 3600 * config.vacuum.grace_hours), config.vacuum)
    return 0


def _vacuum_index(config: IndexConfig) -> int:
    from operators.index.snapshot import read_index_identity
    from operators.index.vacuum import vacuum_index

    index = locate(config.output.path, config.output.storage_options)
    if read_index_identity(index) is None:
        raise InputError(f"check output.path: there is no index at {index.url}")
    _tell(vacuum_index(index, config.vacuum.keep_snapshots, 3600 * config.vacuum.grace_hours), config.vacuum)
    return 0


def _tell(done: Removed, retention: Retention) -> None:
    print(
        f"removed {done.files} files, {done.bytes:,} bytes, that none of the newest {retention.keep_snapshots} "
        f"snapshots names (older than {retention.grace_hours:g} h), and {done.snapshots} snapshots"
    )
    if done.users:
        names = ", ".join(sorted({user.what for user in done.users}))
        print(f"what {names} at work may use stays: run vacuum again when it is through")
