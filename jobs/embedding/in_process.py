"""The steps of an embedding run in this process, for the work of a few seconds: starting Ray takes longer than it.

The stages are those of the pipeline, one fragment after the other. What is missing is a life beyond this process: a row
that kills it ends the run. So a marker lies beside the output while such a run goes on; the next run that finds one
left over goes through Ray, whose ledger finds the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from jobs.embedding.backlog import Backlog
from jobs.embedding.board import OwnLedger
from jobs.embedding.config import EmbedConfig
from jobs.embedding.cutting import seconds_of_one_worker
from jobs.embedding.duplicates import duplicate_positions, reads_ids_here
from jobs.embedding.outcome import stored_plan
from jobs.embedding.small import MOST_SECONDS, needs_no_ray
from jobs.embedding.watching import EMBEDDING, LOADING, RunProgress
from jobs.embedding.workers import (
    EmbedWorker,
    Setup,
    Work,
    read,
    record_from_row,
    scale_of_sample,
    tokenize,
    work_to_row,
    write,
)
from operators.embedder.recipe.spec import EmbedderSpec
from operators.storage import Location, delete, exists, write_whole
from operators.store.dataset import Identity
from operators.store.fragments import FragmentRecord
from operators.work.fragment import Counts, Unit

_MARKER = "running-in-process"


def is_brief(config: EmbedConfig, spec: EmbedderSpec, dataset: Location, backlog: Backlog) -> bool:
    """Whether the pending work is better done here: a few seconds of it, on local files, and nothing asks for Ray."""
    pending = backlog.pending
    if not needs_no_ray(config, dataset, pending):
        return False
    if (config.source.checks_ids and not reads_ids_here(backlog)) or exists(dataset / _MARKER):
        return False
    files = list(dict.fromkeys(extent.file for unit in pending for extent in unit.extents))
    return seconds_of_one_worker(config, spec, files) <= MOST_SECONDS


class InProcess:
    """Where a run computes while the block of `in_process` lasts."""

    def __init__(self, config: EmbedConfig, spec: EmbedderSpec, dataset: Location) -> None:
        self._config, self._spec, self._dataset = config, spec, dataset

    def duplicate_positions(self, identity: Identity, backlog: Backlog) -> dict[str, tuple[int, ...]]:
        """See jobs/embedding/duplicates.py; `is_brief` left it to what needs no Ray."""
        return duplicate_positions(self._config, self._dataset, identity, backlog)

    def calibrate_scale(self, keep: pa.Schema, units: Sequence[Unit]) -> float:
        """See jobs/embedding/workers.py."""
        return scale_of_sample(self._config, self._spec, keep, units)

    def embed(
        self, identity: Identity, backlog: Backlog, work: Sequence[Work], progress: RunProgress
    ) -> Iterator[tuple[FragmentRecord, Counts]]:
        """The stages of the pipeline, fragment by fragment."""
        write_whole(self._dataset / _MARKER, b"")
        setup = Setup(self._config, self._spec, identity, self._dataset, OwnLedger())
        with progress.watching(backlog, setup.ledger, 1, stored_plan(self._dataset)):
            progress.phase(LOADING)
            embed = EmbedWorker(setup)
            progress.phase(EMBEDDING)
            for item in work:
                for fragment in read(work_to_row(item), setup):
                    for row in write(embed(tokenize(fragment, setup)), setup).to_pylist():
                        yield record_from_row(row)


@contextmanager
def in_process(config: EmbedConfig, spec: EmbedderSpec, dataset: Location) -> Iterator[InProcess]:
    """This process; the marker goes however the block ends, unless the process dies in it."""
    try:
        yield InProcess(config, spec, dataset)
    finally:
        forget(dataset)


def forget(dataset: Location) -> None:
    """Remove the marker of a run that died, whose work is done by now."""
    if exists(dataset / _MARKER):
        delete(dataset / _MARKER)
