"""Tokens that truncation cost: in which files they were, and what to set so that they are embedded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from operators.report.figures import percent
from operators.store.fragments import FragmentRecord

MOST_FILES = 20
OTHERS = "other files"


def lost_by_file(records: Sequence[FragmentRecord]) -> dict[str, int]:
    """Tokens cut off in each file, the most first; files that share a fragment go under the name of the first."""
    lost: Counter[str] = Counter()
    for record in records:
        if record.lost_tokens:
            others = len({extent.file for extent in record.extents}) - 1
            name = record.extents[0].file.path
            lost[f"{name} and {others:,} more" if others else name] += record.lost_tokens
    named = lost.most_common(MOST_FILES)
    rest = lost.total() - sum(tokens for _, tokens in named)
    return dict(named) | ({OTHERS: rest} if rest else {})


def loss_note(lost_tokens: int, tokens: int, max_tokens: int, is_chunked: bool) -> tuple[str, ...]:
    """What to do about lost tokens; nothing where none were lost, or only what chunks have to lose."""
    if not lost_tokens or is_chunked:
        return ()
    share = percent(lost_tokens / (lost_tokens + tokens))
    return (
        f"{share} of the text got no vector: a text is read up to max_tokens ({max_tokens}); set chunking.tokens, with "
        "chunking.late for chunks that know their document, or a larger embedder.max_tokens",
    )
