"""What an earlier run has left at the output: the newest snapshot that reads, and which of its files do not."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from jobs.indexing.outcome import IndexLog
from operators.errors import InputError
from operators.index.integrity import Fault, find_faults
from operators.index.scratch import is_stored
from operators.index.snapshot import IndexSnapshot, index_numbers, read_index, restore_identity
from operators.storage import Location

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Present:
    """The index as a run finds it; `snapshot` is None where none reads."""

    number: int  # of the newest snapshot, whether it reads or not; 0: there is none
    snapshot: IndexSnapshot | None
    faults: tuple[Fault, ...]
    lost_generation: int = 0  # of the trained index that is lost or damaged, or 0

    @property
    def is_sound(self) -> bool:
        """Whether the newest snapshot reads, and all that it names is there."""
        return self.snapshot is not None and self.snapshot.number == self.number and not self.faults

    @property
    def broken(self) -> frozenset[int]:
        """The numbers of the shards of which a file is lost or damaged."""
        return frozenset(fault.shard for fault in self.faults if fault.shard is not None)

    @property
    def next_generation(self) -> int:
        """Of a trained index that is made anew."""
        return self.lost_generation + 1


def find_present(index: Location, check: str) -> Present:
    """Look at the output (`check` as `find_faults` takes it); a lost or damaged index.json is written again."""
    numbers = index_numbers(index)
    snapshot = next((s for s in (_readable(index, number) for number in reversed(numbers)) if s is not None), None)
    if snapshot is None:
        return Present(max(numbers, default=0), None, ())
    restore_identity(index, snapshot.identity)
    faults = find_faults(index, snapshot, check)
    for fault in faults:
        logger.warning("%s %s; what it holds is made anew", fault.path, fault.message)
    return Present(numbers[-1], snapshot, tuple(faults))


def without_lost_training(index: Location, present: Present, log: IndexLog) -> Present:
    """The same, without the snapshot where its trained index is lost or damaged: no shard of it can be used then."""
    trained = present.snapshot.trained if present.snapshot is not None else None
    if trained is None or is_stored(index / trained.path, trained.sha256, trained.bytes):
        return present
    log.say(f"training anew: {trained.path} is lost or damaged")
    return Present(present.number, None, (), trained.generation)


def _readable(index: Location, number: int) -> IndexSnapshot | None:
    try:
        return read_index(index, number)
    except InputError as error:
        logger.warning("snapshot %d is left aside: %s", number, error)
        return None
