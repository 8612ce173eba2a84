"""List the source's files, one after the other: nothing is opened, and memory does not grow with their number."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from operators.corpus.source import Source, format_of
from operators.errors import InputError
from operators.storage import iter_files, locate
from operators.work.fragment import SourceFile

logger = logging.getLogger(__name__)


def list_source(source: Source) -> Iterator[SourceFile]:
    """Every readable file of the source, in the order of `source.path` and by name within each.

    Raises InputError for a path that matches nothing, and for a file named outright whose format cannot be told.
    """
    seen_paths: set[str] = set()
    for path in source.paths:
        found = skipped = 0
        skipped_example = ""
        for info in iter_files(locate(path, source.storage_options)):
            if source.described(info.url) is None:
                skipped, skipped_example = skipped + 1, info.url
                continue
            found += 1
            # Only overlapping entries of a list can name a file twice, so one path alone needs no memory of names.
            if len(source.paths) > 1:
                if info.url in seen_paths:
                    continue
                seen_paths.add(info.url)
            yield SourceFile(info.url, info.size, info.version)
        if not found:
            raise _nothing_found(path, skipped, skipped_example)
        if skipped:
            logger.warning(
                "skipped %d files under %s whose ending tells no format, for example %s", skipped, path, skipped_example
            )


def _nothing_found(path: str, skipped: int, example: str) -> InputError:
    if skipped and (format_of(example, "auto") or ("",))[0] == "image":
        return InputError(f"set source.image=image to embed the images at {path!r} (for example {example!r})")
    if skipped:
        return InputError(
            f"set source.format: none of the {skipped} files at {path!r} has an ending that tells its format "
            f"(for example {example!r}); expected parquet, jsonl, csv, tsv, text or image"
        )
    return InputError(f"check source.path: no file found at {path!r}")
