"""Every column name that is ours, stage by stage; what a user keeps beside the vectors has none of them."""

from __future__ import annotations

from collections.abc import Iterable

from operators.errors import InputError

# Of raw tables, where ours stand beside columns of a source that may have any name.
RAW_ROW = "embedfleet:source_row"
RAW_REASON = "embedfleet:reason"
RAW_MESSAGE = "embedfleet:message"

RAW = (RAW_ROW, RAW_REASON, RAW_MESSAGE)
ROWS = ("doc_id", "source_path", "source_row", "text", "reason", "message", "image")
CHUNKS = ("chunk", "char_start", "char_end")
TOKENS = ("text_hash", "num_tokens", "truncated", "input_ids", "span_start", "span_end", "pixels")
OUTPUT = ("embedding", "sparse_indices", "sparse_weights")
INDEX = ("fragment", "row")
RESULTS = ("query_id", "rank", "score")
OURS = frozenset((*RAW, *ROWS, *CHUNKS, *TOKENS, *OUTPUT, *INDEX, *RESULTS))


def check_kept(names: Iterable[str]) -> None:
    """Raise InputError for a column that cannot be kept under its name, and for one that is named twice."""
    seen: set[str] = set()
    for name in names:
        if name in OURS:
            raise InputError(
                f"take {name!r} out of output.keep, or give the column another name in the source: a column of that "
                "name of ours stands beside the kept ones, in the vectors, the index or the results"
            )
        if name in seen:
            raise InputError(f"name {name!r} once in output.keep: it stands there twice")
        seen.add(name)
