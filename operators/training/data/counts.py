"""What became of the rows of a training set: every row that was read is kept or skipped for a named reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

_EXAMPLES = 3  # of each reason


class RowCounts(BaseModel):
    """read + added = kept + skipped, always."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    read: int = 0  # rows of the source
    added: int = 0  # rows more, of lists of positives
    kept: int = 0
    skipped: dict[str, int] = {}  # reason -> rows
    changed: dict[str, int] = {}  # what was done to kept and skipped rows -> texts or rows
    examples: dict[str, tuple[str, ...]] = {}  # reason -> "path#row: message" of the first few

    @staticmethod
    def total(parts: Iterable[RowCounts]) -> RowCounts:
        """The sum, with the first examples."""
        read = added = kept = 0
        skipped: Counter[str] = Counter()
        changed: Counter[str] = Counter()
        examples: dict[str, tuple[str, ...]] = {}
        for part in parts:
            read, added, kept = read + part.read, added + part.added, kept + part.kept
            skipped.update(part.skipped)
            changed.update(part.changed)
            for reason, places in part.examples.items():
                examples[reason] = (*examples.get(reason, ()), *places)[:_EXAMPLES]
        return RowCounts(
            read=read, added=added, kept=kept, skipped=dict(skipped), changed=dict(changed), examples=examples
        )

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))
        return f"{self.read + self.added:,} rows, {self.kept:,} kept" + (f", skipped: {reasons}" if reasons else "")
