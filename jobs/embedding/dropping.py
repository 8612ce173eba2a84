"""What leaves a dataset when its source has shrunk, told and limited before a snapshot without it is published."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from jobs.embedding.backlog import Backlog
from jobs.embedding.config import EmbedConfig
from operators.errors import GateMissed
from operators.store.fragments import FragmentRecord

logger = logging.getLogger(__name__)


def check_files_gone(config: EmbedConfig, backlog: Backlog) -> None:
    """Tell which files of the latest snapshot the source has no more.

    Raises GateMissed where more rows were in them than `gates.max_dropped_fraction` allows; nothing is embedded then.
    """
    listed = {extent.file.path for unit in backlog.units for extent in unit.extents}
    gone: set[str] = set()
    rows = 0.0
    for record in backlog.snapshot.records:
        absent = [extent.file.path for extent in record.extents if extent.file.path not in listed]
        gone.update(absent)
        rows += record.rows * len(absent) / len(record.extents)
    if gone:
        what = f"{len(gone):,} files with about {round(rows):,} rows, for example {min(gone)}"
        _check(config, rows, _num_rows(backlog.snapshot.records), f"the source has no more {what}")


def check_rows_lost(config: EmbedConfig, before: Sequence[FragmentRecord], after: Sequence[FragmentRecord]) -> None:
    """Raise GateMissed where the source has lost more rows in all than `gates.max_dropped_fraction` allows."""
    had, has = _num_rows(before), _num_rows(after)
    if has < had:
        _check(config, had - has, had, f"the source had {had:,} rows and has {has:,}")


def _check(config: EmbedConfig, dropped: float, rows: int, what: str) -> None:
    allowed = config.gates.max_dropped_fraction
    if rows and dropped / rows > allowed:
        raise GateMissed(
            f"check source.path, or allow it with gates.max_dropped_fraction=1: {what}; of the {rows:,} rows of "
            f"{config.output.path} {dropped / rows:.1%} would leave, more than gates.max_dropped_fraction {allowed:g} "
            "allows; nothing was published"
        )
    logger.warning("%s: they leave the dataset with this run", what)


def _num_rows(records: Iterable[FragmentRecord]) -> int:
    return sum(record.rows for record in records)
