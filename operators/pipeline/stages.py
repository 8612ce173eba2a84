"""The steps of the embed pipeline, each on one fragment: rows -> tokens -> vectors.

A step works on items [start, end) at a time under `run_guarded`, so that those which kill the process or which the
model cannot embed are rejected one by one: rows, or with late chunking windows, whose chunks are rows side by side. A
document is rejected as a whole: if one of its chunks gets no vector, none of them is written.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.corpus.chunking import chunk_rows
from operators.corpus.chunking_config import Chunking
from operators.embedder.quantization import to_arrow
from operators.embedder.sparse_vectors import SparseVectors
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.tokens.windows import SPAN_COLUMNS, Windows, tokens_read
from operators.pipeline.late_chunking import late_chunk_columns, text_hashes
from operators.store.dataset import Identity
from operators.work.fragment import LENGTH_EDGES, FragmentBatch
from operators.work.guard import Ledger, run_guarded

if TYPE_CHECKING:
    from operators.embedder.vectors import Vectors
    from operators.embedder.vision.reading import ImageReader

_INPUT_COLUMNS = ("input_ids", "pixels")

Embed = Callable[[Any], "Vectors"]  # of what `inputs_of` gives
_READ = "tokens_read"

# The model may fail on this many single rows of a fragment before the failure counts as the model's own.
MAX_FAILING_ROWS = 8


def tokenize_fragment(
    batch: FragmentBatch, chunking: Chunking, tokenizer: Tokenizer, ledger: Ledger, images: ImageReader | None = None
) -> FragmentBatch:
    """Chunk and tokenize a fragment's rows: ROWS in, TOKENS out (docs/architecture.md has the columns).

    Rows with images, prepared by `images`, are not cut into chunks.
    """
    started = time.perf_counter()

    def work(start: int, end: int) -> _Read:
        rows = batch.table.slice(start, end - start)
        return _tokens_of(rows, chunking, tokenizer) if images is None else _images_of(rows, images)

    done = run_guarded(ledger, f"tokenize:{batch.fragment.key}", batch.table.num_rows, work)
    rejected = _killer_rows(batch.table, done.killers, "tokenizing")
    read = [piece for _, _, piece in done.pieces] or [work(0, 0)]
    tables = [piece.table for piece in read]
    lost_tokens = sum(piece.lost_tokens for piece in read)
    rejected += [row for piece in read for row in piece.rejected]
    advanced = batch.advance(
        pa.concat_tables(tables),
        rejected,
        rejected=batch.counts.rejected + len(rejected),
        lost_tokens=lost_tokens,
        deaths=batch.counts.deaths + done.deaths,
    )
    return advanced.spent("tokenize", time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class _Read:
    """Rows at the TOKENS stage, and those that got none."""

    table: pa.Table
    lost_tokens: int
    rejected: list[dict[str, object]]


def _images_of(rows: pa.Table, images: ImageReader) -> _Read:
    read = images(rows)
    rejected = [_rejected_row(rows, row, *fault) for row, fault in read.faults.items()]
    is_good = np.ones(rows.num_rows, np.bool_)
    is_good[list(read.faults)] = False
    good = rows.filter(pa.array(is_good))
    columns = {name: good[name] for name in ("doc_id", "source_path", "source_row")}
    columns["chunk"] = pa.array(np.zeros(good.num_rows, np.int32))
    columns["char_start"] = pa.array(np.zeros(good.num_rows, np.int64))
    columns["char_end"] = pc.utf8_length(good["text"]).fill_null(0).cast(pa.int64())
    columns["text_hash"] = pa.array(read.hashes, pa.binary(16))
    columns["num_tokens"] = pa.array(read.num_tokens, pa.int32())
    columns["truncated"] = pa.array(read.truncated)
    columns["input_ids"] = read.input_ids
    columns["pixels"] = read.pixels
    columns |= {name: good[name] for name in good.column_names if name not in (*columns, "text", "image")}
    return _Read(pa.table(columns), read.lost_tokens, rejected)


def _tokens_of(rows: pa.Table, chunking: Chunking, tokenizer: Tokenizer) -> _Read:
    chunks = chunk_rows(rows, chunking, tokenizer).combine_chunks()
    fixed = ("doc_id", "source_path", "source_row", "chunk", "char_start", "char_end")
    columns = {name: chunks[name] for name in fixed}
    if chunking.late:
        late_columns, lost_tokens = late_chunk_columns(rows, chunks, chunking, tokenizer)
        columns |= late_columns
    else:
        text = _one_array(chunks["text"])
        tokens = tokenizer(text)
        columns["text_hash"] = text_hashes(text.to_pylist())
        columns["num_tokens"] = tokens.num_tokens
        columns["truncated"] = tokens.truncated
        columns["input_ids"] = tokens.input_ids
        lost_tokens = tokens.lost_tokens
    columns |= {name: chunks[name] for name in chunks.column_names if name not in (*fixed, "text")}
    return _Read(pa.table(columns), lost_tokens, [])


def embed_fragment(batch: FragmentBatch, embedder: Embed, identity: Identity, ledger: Ledger) -> FragmentBatch:
    """Embed a fragment's chunks: TOKENS in; out the same columns with vectors in place of what they were made of."""
    started = time.perf_counter()
    table = batch.table
    inputs = inputs_of(table)
    edges = inputs.edges if isinstance(inputs, Windows) else range(table.num_rows + 1)

    def work(start: int, end: int) -> list[tuple[int, int, Vectors | str]]:
        return _embed_items(embedder, inputs, start, end, [MAX_FAILING_ROWS])

    done = run_guarded(ledger, f"embed:{batch.fragment.key}", len(inputs), work)
    died = ("kills_worker", "the worker process died while embedding this document")
    faults = {int(edges[item]): died for item in done.killers}
    padding_tokens, unknown_tokens, flops = 0, 0, 0.0
    vectors: list[tuple[int, Vectors]] = []
    for first, _, result in (piece for _, _, pieces in done.pieces for piece in pieces):
        start = int(edges[first])
        if isinstance(result, str):
            faults[start] = ("embedding_failed", result)
            continue
        vectors.append((start, result))
        padding_tokens += result.padding_tokens
        unknown_tokens += result.unknown_tokens
        flops += result.flops
        for row in np.flatnonzero(~result.finite_N):
            faults[start + int(row)] = ("non_finite_vector", "the model gave NaN, infinity or a zero vector")
    table = table.append_column(_READ, pa.array(tokens_read(table)))
    made_of = [name for name in (*_INPUT_COLUMNS, *SPAN_COLUMNS) if name in table.column_names]
    table = table.drop_columns(made_of)
    for name, column in _vector_columns(vectors, table.num_rows, identity).items():
        table = table.append_column(name, column)
    kept, rejected = _drop_documents(table, faults)
    num_tokens = kept["num_tokens"].to_numpy()
    return batch.advance(
        kept.drop_columns([_READ]),
        rejected,
        chunks=kept.num_rows,
        tokens=int(kept[_READ].to_numpy().sum()),
        padding_tokens=padding_tokens,
        unknown_tokens=unknown_tokens,
        flops=flops,
        truncated=int(pc.sum(kept["truncated"]).as_py() or 0),
        rejected=batch.counts.rejected + len(rejected),
        deaths=batch.counts.deaths + done.deaths,
        lengths=_histogram(num_tokens),
    ).spent("embed", time.perf_counter() - started)


def _vector_columns(pieces: list[tuple[int, Vectors]], num_rows: int, identity: Identity) -> dict[str, pa.Array]:
    """The columns of `num_rows` vectors, of pieces that begin at given rows; without entries elsewhere."""
    columns: dict[str, pa.Array] = {}
    if identity.dim:
        values = np.zeros((num_rows, identity.dim), np.float32)
        for start, vectors in pieces:
            values[start : start + len(vectors.values_ND)] = vectors.values_ND
        columns["embedding"] = to_arrow(values, identity.dtype, identity.scale)
    if identity.sparse_dim:
        parts = [vectors.sparse for _, vectors in pieces if vectors.sparse is not None]
        assert len(parts) == len(pieces), "a recipe with a sparse head gives sparse vectors in every call"
        starts = [np.arange(start, start + len(vectors.values_ND)) for start, vectors in pieces]
        rows = np.concatenate(starts) if starts else np.empty(0, np.int64)
        columns |= SparseVectors.concat(parts).placed(rows, num_rows).to_arrow()
    return columns


def inputs_of(table: pa.Table) -> pa.Array | Windows:
    """What an embedder takes of a table at the TOKENS stage: token ids, structs of them and pixels, or windows."""
    if SPAN_COLUMNS[0] in table.column_names:
        return Windows.of_table(table)
    columns = [_one_array(table[name]) for name in _INPUT_COLUMNS if name in table.column_names]
    return columns[0] if len(columns) == 1 else pa.StructArray.from_arrays(columns, list(_INPUT_COLUMNS))


def _embed_items(
    embedder: Embed, inputs: pa.Array | Windows, start: int, end: int, failures_left: list[int]
) -> list[tuple[int, int, Vectors | str]]:
    """Embed items [start, end); those on which the model raises are found by halving and come as the error's text."""
    try:
        return [(start, end, embedder(inputs.slice(start, end - start)))]
    except (RuntimeError, ValueError, IndexError) as error:  # what torch raises for a row; anything else is a bug
        if end - start <= 1:
            failures_left[0] -= 1
            if failures_left[0] < 0:
                raise
            return [(start, end, " ".join(f"{type(error).__name__}: {error}".split())[:300])]
        middle = (start + end) // 2
        first = _embed_items(embedder, inputs, start, middle, failures_left)
        return first + _embed_items(embedder, inputs, middle, end, failures_left)


def _drop_documents(table: pa.Table, faults: dict[int, tuple[str, str]]) -> tuple[pa.Table, list[dict[str, object]]]:
    """The table without any chunk of a document that has a faulty one, and one rejected row for each such document."""
    if not faults:
        return table, []
    documents = _document_numbers(table)
    first_fault = {int(documents[row]): fault for row, fault in sorted(faults.items(), reverse=True)}
    is_dropped = np.isin(documents, list(first_fault))
    rejected = []
    for document, (reason, message) in sorted(first_fault.items()):
        row = int(np.flatnonzero(documents == document)[0])
        rejected.append(_rejected_row(table, row, reason, message))
    return table.filter(pa.array(~is_dropped)), rejected


def _document_numbers(table: pa.Table) -> NDArray[np.int64]:
    """A number per row that chunks of one document share: chunks are in order, so chunk 0 begins a document."""
    return np.cumsum(table["chunk"].to_numpy() == 0)


def _killer_rows(rows: pa.Table, killers: tuple[int, ...], doing: str) -> list[dict[str, object]]:
    message = f"the worker process died while {doing} this document"
    return [_rejected_row(rows, row, "kills_worker", message) for row in killers]


def _rejected_row(table: pa.Table, row: int, reason: str, message: str) -> dict[str, object]:
    identity = {name: table[name][row].as_py() for name in ("doc_id", "source_path", "source_row")}
    return {**identity, "reason": reason, "message": message}


def _histogram(num_tokens: NDArray[np.int32]) -> tuple[int, ...]:
    bins = np.searchsorted(np.array(LENGTH_EDGES), num_tokens, side="left")
    return tuple(int(count) for count in np.bincount(bins, minlength=len(LENGTH_EDGES) + 1))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def unreadable_unit(batch: FragmentBatch, deaths: int) -> FragmentBatch:
    """A fragment in place of a unit whose reading kills its process each time: one rejected row a file."""
    rejected: list[dict[str, object]] = [
        {
            "doc_id": None,
            "source_path": extent.file.path,
            "source_row": None,
            "reason": "kills_worker",
            "message": f"{deaths} processes died while reading this file",
        }
        for extent in batch.fragment.unit.extents
    ]
    return dataclasses.replace(
        batch.advance(batch.table, rejected, rows=len(rejected), rejected=len(rejected), deaths=deaths), ids_digest=""
    )
