"""What work a job does in its own process: a Ray takes some eight seconds to start and end."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from cluster.environment import expected_cpus
from jobs.embedding.config import EmbedConfig
from operators.storage import Location, locate
from operators.work.fragment import Unit

MOST_SECONDS = 5.0  # of embedding by one worker, by the estimate that fragments are cut by
_MOST_BYTES = 4 << 20  # of the source; also what an estimate that is wrong by a factor can do


def needs_no_ray(config: EmbedConfig, dataset: Location, units: Iterable[Unit]) -> bool:
    """Whether these units are small, they and the dataset lie on this machine, and nothing asks for Ray."""
    source, compute = config.source, config.compute
    if compute.workers is not None or compute.gpus_per_worker or config.embedder.device == "cuda":
        return False
    sources = (locate(path, source.storage_options) for path in source.paths)
    if not nothing_asks_for_ray(compute.local_cpus, (*sources, dataset)):
        return False
    return sum(unit.size_bytes for unit in units) <= _MOST_BYTES


def nothing_asks_for_ray(local_cpus: int | None, locations: Iterable[Location]) -> bool:
    """Whether no Ray is there or named, and all that is read and written lies on this machine."""
    if expected_cpus(local_cpus) is None or _has_ray():
        return False
    return all(location.is_local for location in locations)


def _has_ray() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
