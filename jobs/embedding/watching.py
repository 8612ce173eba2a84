"""What a running embed job shows: the phases of its start, then how far its workers are (jobs/embedding/board.py)."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster.forecast import Expected, InHand
from cluster.progress import Progress
from jobs.embedding.backlog import Backlog
from operators.planning.estimate import Estimate
from operators.store.fragments import FragmentRecord
from operators.work.fragment import Counts

if TYPE_CHECKING:
    from jobs.embedding.board import RunLedger, Standing

logger = logging.getLogger(__name__)

LISTING, CHECKING_IDS, STARTING_RAY = "listing", "checking ids", "starting Ray"
STARTING_WORKERS, LOADING, EMBEDDING = "starting workers", "loading the model", "embedding"
_ANSWER_SECONDS = 5.0


class RunProgress:
    """The display of one run, and the counts of its fragments."""

    def __init__(self) -> None:
        self.display = Progress(look=self._look)
        self.counts: list[Counts] = []
        self.workers: int | None = None  # that there are, or will be
        self._board: RunLedger | None = None
        self._asking = threading.Lock()
        self._just_finished: list[str] = []

    def phase(self, name: str) -> None:
        """Say what the run is at."""
        self.display.phase(name)

    @contextmanager
    def watching(self, backlog: Backlog, board: RunLedger, workers: int, plan: Estimate | None) -> Iterator[None]:
        """Follow so many workers, until their Ray ends: a later question would start it again."""
        self.workers = workers
        self.display.expect(_expected(backlog, plan), lambda: self.workers)
        self.phase(STARTING_WORKERS)
        with self._asking:
            self._board = board
        try:
            yield
        finally:
            with self._asking:
                self._board = None

    def count(self, record: FragmentRecord, counts: Counts) -> None:
        """A fragment is on storage."""
        self.counts.append(dataclasses.replace(counts, rows=record.rows, rejected=record.rejected))
        # of one that another run wrote there, only the record tells
        tokens, source_bytes = counts.tokens, counts.source_bytes
        self.display.update(record.rows, record.rejected, tokens, source_bytes, key=record.key)
        self._just_finished.append(record.key)

    def _look(self) -> None:
        """Ask the board; a board that does not answer is asked again later."""
        with self._asking:
            if self._board is None:
                return
            finished, self._just_finished = self._just_finished, []
            try:
                standing = self._board.standing(finished, _ANSWER_SECONDS)
            except Exception as error:  # whatever Ray has for a busy, restarting or ended actor: the run goes on unseen
                logger.debug("no word of the workers: %s", error)
                self._just_finished = finished + self._just_finished
                return
        self.display.phase(_phase(standing))
        self.display.in_hand({f.key: InHand(f.done_tokens, f.tokens, f.source_bytes) for f in standing.in_hand})


def _phase(standing: Standing) -> str:
    if standing.ready:
        return EMBEDDING
    return LOADING if standing.loading else STARTING_WORKERS


def _expected(backlog: Backlog, plan: Estimate | None) -> Expected:
    pending = {unit.digest: unit for unit in backlog.pending}
    earlier = [record for record in backlog.records.values() if record.fragment.unit.digest in pending]
    return Expected(
        resumed_fragments=len(backlog.records),
        source_bytes=sum(unit.size_bytes for unit in pending.values()),
        resumed_tokens=sum(record.tokens for record in earlier),
        tokens_per_byte=plan.tokens.value / plan.num_bytes if plan is not None and plan.num_bytes else None,
    )
