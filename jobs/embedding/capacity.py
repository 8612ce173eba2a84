"""How many workers that hold a model a cluster has room for."""

from __future__ import annotations

import ray

from jobs.embedding.config import Compute

# A worker's threads are busy with the model nearly all the time; the rest of its CPU is what the other stages live on.
EMBED_CPU_SHARE = 0.75


def workers_that_fit(compute: Compute) -> int:
    """Workers of a config's size that the cluster has room for as it is now, by its GPUs or else by its CPUs."""
    resources = ray.cluster_resources()
    if compute.gpus_per_worker:
        return int(resources.get("GPU", 0) / compute.gpus_per_worker)
    return int(resources.get("CPU", 1) / compute.cpus_per_worker)
