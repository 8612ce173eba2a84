"""vacuum: remove files of an embeddings dataset that no kept snapshot names, and old snapshots.

python -m jobs vacuum CONFIG.yaml [vacuum.grace_hours=168] [vacuum.keep_snapshots=3]
"""

from __future__ import annotations

import time

from jobs.config import EmbedConfig as Config
from operators.errors import InputError
from operators.storage import locate
from operators.store.dataset import read_identity
from operators.store.vacuum import vacuum


def run(config: Config) -> int:
    """Delete what nothing needs; returns the exit code."""
    dataset = locate(config.output.path, config.output.storage_options)
    if read_identity(dataset) is None:
        raise InputError(f"check output.path: there is no embeddings dataset at {dataset.url}")
    older_than = time.time() - 3600 * config.vacuum.grace_hours
    num_files, num_bytes = vacuum(dataset, config.vacuum.keep_snapshots, older_than)
    print(
        f"removed {num_files} files, {num_bytes:,} bytes, that none of the newest "
        f"{config.vacuum.keep_snapshots} snapshots names (older than {config.vacuum.grace_hours:g} h)"
    )
    return 0
