"""Which index is built in the job's own process: a Ray takes some eight seconds to start and end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.session import connect
from jobs.embedding.small import nothing_asks_for_ray
from jobs.indexing.config import IndexConfig
from jobs.indexing.in_process import InProcess
from jobs.indexing.place import Place
from jobs.indexing.source import Embeddings
from operators.index.snapshot import IndexSnapshot
from operators.storage import Location

_MOST_BYTES = 64 << 20  # of data files
_MOST_SHARDS = 8  # on Ray they are built side by side; each update may add one
_MOST_FRAGMENTS = 512  # files to open, two for each


def is_small(
    config: IndexConfig, source: Embeddings, index: Location, rows_per_shard: int, present: IndexSnapshot | None
) -> bool:
    """Whether these embeddings are indexed in seconds, they and the index are local, and nothing asks for Ray."""
    if config.compute.gpus_per_builder or config.train.gpus:
        return False
    if not nothing_asks_for_ray(config.compute.local_cpus, (index, source.dataset)):
        return False
    shards = max(-(-source.num_vectors // rows_per_shard), len(present.shards) if present is not None else 0)
    size = sum(record.bytes for record in source.records)
    return size <= _MOST_BYTES and shards <= _MOST_SHARDS and len(source.records) <= _MOST_FRAGMENTS


@contextmanager
def place_for(
    config: IndexConfig, source: Embeddings, index: Location, rows_per_shard: int, present: IndexSnapshot | None
) -> Iterator[Place]:
    """This process where all is small, else Ray."""
    if is_small(config, source, index, rows_per_shard, present):
        yield InProcess(config.compute.local_cpus)
        return
    with connect(local_cpus=config.compute.local_cpus):
        from jobs.indexing.on_ray import OnRay

        yield OnRay()
