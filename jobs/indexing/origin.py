"""From a vector in an index back to where it came from: embeddings file, source file and row, the text itself."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.embedding.config import EmbedConfig
from operators.corpus.listing import list_source
from operators.corpus.reading import read_fragments
from operators.errors import InputError
from operators.index.snapshot import IndexSnapshot
from operators.pipeline.late_chunking import text_hashes
from operators.storage import Location
from operators.store.fragments import FragmentRecord, data_file, read_record, read_table

logger = logging.getLogger(__name__)

_COLUMNS = ["doc_id", "chunk", "source_path", "source_row", "char_start", "char_end", "num_tokens", "truncated"]
_HASH = "text_hash"
_LARGEST_UNIT = 256 << 20  # a unit is read from its start to find one of its rows


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a vector came from."""

    record: FragmentRecord
    row: int  # in the embeddings file
    facts: Mapping[str, Any]  # source_path, source_row, char_start, char_end, num_tokens, truncated
    text_hash: bytes  # of the text that was embedded


@dataclass(frozen=True, slots=True)
class SourceText:
    """The text that a vector was made of, or why the source does not have it any more; neither for an image."""

    text: str | None
    missing: str = ""


def find_origin(dataset: Location, snapshot: IndexSnapshot, fragment: str, row: int, doc_id: str, chunk: int) -> Origin:
    """The embeddings file and source row of an indexed vector.

    A file that was written anew since the vector was indexed is looked up by document and piece. Raises InputError
    where the embeddings are gone.
    """
    for key in snapshot.replaced.get(fragment, (fragment,)):
        try:
            table = read_table(data_file(dataset, key), [*_COLUMNS, _HASH])
        except FileNotFoundError:
            continue
        if key == fragment and row < table.num_rows:
            place = row
        else:
            matches = pc.and_(pc.equal(table["doc_id"], doc_id), pc.equal(table["chunk"], chunk))
            found = pc.index(matches, True).as_py()
            if found < 0:
                continue
            place = found
        facts = table.slice(place, 1).to_pylist()[0]
        return Origin(read_record(data_file(dataset, key)), place, facts, facts.pop(_HASH))
    raise InputError(
        f"restore data/{fragment}.parquet of {dataset.url}, or run index again: the embeddings of {doc_id!r} are gone"
    )


def text_of(config: EmbedConfig, keep: pa.Schema, origin: Origin) -> SourceText:
    """The text of a vector's piece of a document, from the source: the one that was embedded, or none.

    A source that was edited, moved or replaced since may have another text in the same place.
    """
    unit, part = origin.record.fragment.unit, origin.record.fragment.part
    if unit.size_bytes > _LARGEST_UNIT:
        return SourceText(None, "in a file too large to look it up: keep it with output.keep")
    try:
        batches = read_fragments(unit, config.source, keep, skip_parts=range(part))
        rows = next(batch.table for batch in batches if batch.fragment.part == part)
        is_unchanged = _is_unchanged(config, origin) if _hashes_more_than_text(config) else None
    except (OSError, ValueError, StopIteration, pa.ArrowException) as error:  # a snippet is a service, not the result
        logger.info("no text for a result: its source does not read (%s)", type(error).__name__)
        return SourceText(None, "gone: the source has no such row any more, or cannot be read")
    facts = origin.facts
    matches = pc.and_(
        pc.equal(rows["source_path"], facts["source_path"]), pc.equal(rows["source_row"], facts["source_row"])
    )
    found = rows.filter(matches)
    if not found.num_rows:
        return SourceText(None, "gone: the source has no such row any more")
    text = found["text"][0].as_py()
    if text is None:
        return SourceText(None)  # an image
    piece = str(text)[facts["char_start"] : facts["char_end"]]
    if is_unchanged is None:
        is_unchanged = text_hashes([piece])[0].as_py() == origin.text_hash
    if not is_unchanged:
        return SourceText(None, "changed: the source has another text there since it was embedded")
    return SourceText(piece)


def _hashes_more_than_text(config: EmbedConfig) -> bool:
    """Whether the stored hash is of more than the piece: of its window, or of an image beside it."""
    return config.chunking.late or config.source.image is not None


def _is_unchanged(config: EmbedConfig, origin: Origin) -> bool:
    """Whether the file of a vector is the one that was read."""
    path = origin.facts["source_path"]
    (file,) = (extent.file for extent in origin.record.extents if extent.file.path == path)
    listed = list_source(config.source.model_copy(update={"path": path}))
    return file in itertools.islice(listed, 1)


def snippet(text: str, length: int) -> str:
    """The head of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def origins_of(dataset: Location, snapshot: IndexSnapshot, rows: Sequence[Mapping[str, Any]]) -> list[Origin | None]:
    """`find_origin` for many rows of id maps; None where the embeddings are gone."""
    found: list[Origin | None] = []
    for row in rows:
        try:
            found.append(
                find_origin(dataset, snapshot, row["fragment"], row["row"], str(row["doc_id"]), int(row["chunk"]))
            )
        except InputError:
            found.append(None)
    return found
