"""From a vector in an index back to where it came from: embeddings file, source file and row, the text itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.embedding.config import EmbedConfig
from operators.corpus.reading import read_fragments
from operators.errors import InputError
from operators.index.snapshot import IndexSnapshot
from operators.storage import Location
from operators.store.fragments import FragmentRecord, data_file, read_record, read_table

logger = logging.getLogger(__name__)

_COLUMNS = ["doc_id", "chunk", "source_path", "source_row", "char_start", "char_end", "num_tokens", "truncated"]
_LARGEST_UNIT = 256 << 20  # a unit is read from its start to find one of its rows


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a vector came from."""

    record: FragmentRecord
    row: int  # in the embeddings file
    facts: Mapping[str, Any]  # source_path, source_row, char_start, char_end, num_tokens, truncated


def find_origin(dataset: Location, snapshot: IndexSnapshot, fragment: str, row: int, doc_id: str, chunk: int) -> Origin:
    """The embeddings file and source row of an indexed vector.

    A file that was written anew since the vector was indexed is looked up by document and piece. Raises InputError
    where the embeddings are gone.
    """
    for key in snapshot.replaced.get(fragment, (fragment,)):
        try:
            table = read_table(data_file(dataset, key), _COLUMNS)
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
        return Origin(read_record(data_file(dataset, key)), place, table.slice(place, 1).to_pylist()[0])
    raise InputError(
        f"restore data/{fragment}.parquet of {dataset.url}, or run index again: the embeddings of {doc_id!r} are gone"
    )


def text_of(config: EmbedConfig, keep: pa.Schema, origin: Origin) -> str | None:
    """The text of a vector's piece of a document, from the source; None where it cannot be read any more."""
    unit, part = origin.record.fragment.unit, origin.record.fragment.part
    if unit.size_bytes > _LARGEST_UNIT:
        return None
    try:
        batches = read_fragments(unit, config.source, keep, skip_parts=range(part))
        rows = next(batch.table for batch in batches if batch.fragment.part == part)
    except (OSError, ValueError, StopIteration, pa.ArrowException) as error:  # a snippet is a service, not the result
        logger.info("no text for a result: its source does not read (%s)", type(error).__name__)
        return None
    facts = origin.facts
    matches = pc.and_(
        pc.equal(rows["source_path"], facts["source_path"]), pc.equal(rows["source_row"], facts["source_row"])
    )
    found = rows.filter(matches)
    if not found.num_rows:
        return None
    text = found["text"][0].as_py()
    if text is None:  # an image
        return None
    return str(text)[facts["char_start"] : facts["char_end"]]


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
