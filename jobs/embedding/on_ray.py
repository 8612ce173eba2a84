"""The steps of an embedding run that compute, on the cluster at hand or a Ray of our own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from cluster.session import connect
from jobs.embedding.backlog import Backlog
from jobs.embedding.capacity import workers_that_fit
from jobs.embedding.config import EmbedConfig
from jobs.embedding.duplicates import duplicate_positions
from jobs.embedding.outcome import stored_plan
from jobs.embedding.pipeline import calibrate_scale, embed_units
from jobs.embedding.remote_ledger import RemoteLedger
from jobs.embedding.watching import STARTING_RAY, RunProgress
from jobs.embedding.workers import Setup, Work
from operators.embedder.recipe.spec import EmbedderSpec
from operators.errors import InputError
from operators.storage import Location, delete, list_folder
from operators.store.dataset import Identity, read_identity
from operators.store.fragments import FragmentRecord
from operators.work.fragment import Counts, Unit


class OnRay:
    """Where a run computes while the block of `on_ray` lasts."""

    def __init__(self, config: EmbedConfig, spec: EmbedderSpec, dataset: Location) -> None:
        self._config, self._spec, self._dataset = config, spec, dataset

    def duplicate_positions(self, identity: Identity, backlog: Backlog) -> dict[str, tuple[int, ...]]:
        """See jobs/embedding/duplicates.py."""
        return duplicate_positions(self._config, self._dataset, identity, backlog)

    def calibrate_scale(self, keep: pa.Schema, units: Sequence[Unit]) -> float:
        """See jobs/embedding/pipeline.py."""
        return calibrate_scale(self._config, self._spec, keep, units)

    def embed(
        self, identity: Identity, backlog: Backlog, work: Sequence[Work], progress: RunProgress
    ) -> Iterator[tuple[FragmentRecord, Counts]]:
        """See jobs/embedding/pipeline.py."""
        setup = Setup(self._config, self._spec, identity, self._dataset, RemoteLedger())
        compute = self._config.compute
        workers = min(compute.workers[1], workers_that_fit(compute)) if compute.workers else workers_that_fit(compute)
        with progress.watching(backlog, setup.ledger, max(1, workers), stored_plan(self._dataset)):
            yield from embed_units(work, setup)


@contextmanager
def on_ray(config: EmbedConfig, spec: EmbedderSpec, dataset: Location, progress: RunProgress) -> Iterator[OnRay]:
    """Ray, joined or started; what was started ends with the block.

    Where a wrong config or input ends it, no hashes of ids are left of an output that was new.
    """
    is_new = read_identity(dataset) is None
    progress.phase(STARTING_RAY)
    try:
        with connect(local_cpus=config.compute.local_cpus):
            yield OnRay(config, spec, dataset)
    except InputError:
        for info in list_folder(dataset / "ids") if is_new else ():
            delete(dataset / "ids" / info.name)
        raise
