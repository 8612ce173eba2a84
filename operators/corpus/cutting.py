"""How large the fragments of an output are: what one worker embeds in half a minute, decided once, when it is new.

    head of the listing -> a few rows of it -> seconds a row -> FragmentSize (operators.store.dataset.Identity keeps it)

A fragment is what a worker is given, what is done again after its death, and one file. Large ones leave workers idle at
the end of a run, small ones cost their overhead (0.1 to 0.3 s of the other stages). Nothing here knows a model: the
caller says how many seconds a row of so many bytes takes.

Shapes: R sampled rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.corpus.reading import content_bytes, read_sample
from operators.corpus.source import MAX_BYTES, MAX_IMAGE_BYTES, MAX_IMAGE_ROWS, MAX_ROWS, Source
from operators.work.fragment import Extent, SourceFile, Unit

SECONDS = 30.0
# Where that leaves a worker fewer fragments than `FRAGMENTS_PER_WORKER`, they are shorter, down to this
LEAST_SECONDS = 4.0
FRAGMENTS_PER_WORKER = 20
SAMPLED_FILES, SAMPLED_ROWS, SAMPLED_IMAGES = 8, 256, 8
# A file of text is a row, and packs of them are made by bytes: only one of very many small files ends by its rows
ROWS_OF_PACKS = 4


@dataclass(frozen=True, slots=True)
class FragmentSize:
    """Where a fragment ends: at the first row with which it has so many rows, or so many bytes of text and images."""

    rows: int
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows of a source."""

    content_bytes_R: NDArray[np.int64]  # of text and images
    storage_bytes: int  # that they take in their files


def largest(source: Source) -> FragmentSize:
    """The largest fragments that travel well between two stages; what a GPU is given."""
    return FragmentSize(MAX_ROWS, MAX_BYTES) if source.image is None else FragmentSize(MAX_IMAGE_ROWS, MAX_IMAGE_BYTES)


def sample_rows(files: Sequence[SourceFile], source: Source) -> Rows:
    """Rows from some of these files; of files that are one document each, their sizes alone, without opening any."""
    if {(source.described(file.path) or ("",))[0] for file in files} <= {"text", "image"}:
        sizes_R = np.array([file.size for file in files], np.int64)
        return Rows(sizes_R, int(sizes_R.sum()))
    chosen = [files[len(files) * i // SAMPLED_FILES] for i in range(SAMPLED_FILES)]
    rows = SAMPLED_ROWS if source.image is None else SAMPLED_IMAGES

    def look(file: SourceFile) -> Rows:
        batch, storage_bytes = read_sample(Unit.of((Extent(file),), ""), source, pa.schema([]), rows)
        return Rows(content_bytes(batch.table), storage_bytes)

    with ThreadPoolExecutor(SAMPLED_FILES, thread_name_prefix="sample") as threads:
        seen = list(threads.map(look, dict.fromkeys(chosen)))
    return Rows(np.concatenate([rows.content_bytes_R for rows in seen]), sum(rows.storage_bytes for rows in seen))


def choose_size(
    seen: Rows, seconds_R: NDArray[np.float64], total_bytes: int, workers: int, source: Source, kinds: set[str]
) -> FragmentSize:
    """The size for a source of `total_bytes` (at least), of which a worker takes `seconds_R` for the rows seen.

    `kinds`: formats of its files, with their compression: "jsonl", "jsonl.gzip".
    """
    most = largest(source)
    seen_seconds = float(seconds_R.sum())
    if not seen_seconds or not seen.storage_bytes:
        return most
    all_seconds = seen_seconds * total_bytes / seen.storage_bytes
    seconds = float(np.clip(all_seconds / (FRAGMENTS_PER_WORKER * workers), LEAST_SECONDS, SECONDS))
    rows = seconds / seen_seconds * len(seconds_R) * (ROWS_OF_PACKS if kinds <= {"text"} else 1)
    # Byte ranges are of the file, with all that stands beside the texts in it
    measure = seen.storage_bytes if "jsonl" in kinds else int(seen.content_bytes_R.sum())
    num_bytes = seconds / seen_seconds * measure if source.image is None else most.bytes
    return FragmentSize(int(np.clip(rows, 1, most.rows)), int(np.clip(num_bytes, 1024, most.bytes)))
