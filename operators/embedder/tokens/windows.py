"""Late chunking: documents go through the model whole, and each chunk's vector is the mean over its tokens' states.

Günther et al. 2024, arXiv 2409.04701. What a chunk says of "it" and "the city" is then told apart by what stands
elsewhere in the document. A document longer than the model reads is cut into *windows*: as many whole chunks side by
side as fit, with tokens of the document before and after them, half of the overlap on each side. So two windows share
as many tokens as the overlap says, each chunk is pooled from the one window in which it has the most context, at least
half of the overlap on either side, and no chunk is ever pooled in parts.

Windows travel through the pipeline in the rows of their chunks: the first has the window's token ids, the others null.
A window is what a worker computes at once, so its memory does not grow with the length of a document.

Shapes: C chunks, M windows, T tokens of a document, S chunks of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.tokens import batching
from operators.embedder.tokens.batching import Batch, Plan
from operators.errors import InputError

if TYPE_CHECKING:
    from operators.embedder.tokens.document_offsets import DocumentTokens

SPAN_COLUMNS = ("span_start", "span_end")  # of the rows of late chunks: their tokens within their window


class DocumentTokenizer(Protocol):
    """Tokenizes documents of any length."""

    def encode_document(self, text: str) -> DocumentTokens:
        """All tokens of a document."""


def check_late(spec: EmbedderSpec) -> None:
    """Raise InputError for a model of which no chunk's vector can be made from the states of its tokens."""
    recipe = spec.recipe
    refused = (
        "set chunking.late to false, or choose another model: late chunking averages the states of a chunk's tokens"
    )
    if recipe.kind != "transformer":
        raise InputError(f"{refused} in a transformer, and {spec.model} is of kind {recipe.kind}")
    if recipe.pooling != "mean":
        raise InputError(f"{refused}, and {spec.model} has pooling {recipe.pooling}, not mean")
    if recipe.sparse is not None:
        raise InputError(f"{refused}, and {spec.model} makes sparse vectors, which are no averages")
    if len(spec.templates) != 1 or spec.templates[0].copies != 1:
        raise InputError(f"{refused}, and the prompt of {spec.model} reads each text more than once")
    if spec.templates[0].suffix:
        raise InputError(
            f"{refused}, and the prompt of {spec.model} ends with {spec.templates[0].suffix!r}, which would have to "
            "follow every chunk"
        )
    if recipe.text_style != "as_is":
        raise InputError(f"{refused}, and text_style {recipe.text_style} of {spec.model} is for single sentences")


@dataclass(frozen=True, slots=True)
class Windows:
    """M windows, and the C chunks that are pooled from them, side by side in the order of their windows."""

    input_ids: pa.ListArray  # of M windows
    spans_C2: NDArray[np.int64]  # start and end of each chunk's tokens in its window
    edges: NDArray[np.int64]  # window m has the chunks edges[m]:edges[m + 1]; M + 1 of them

    @staticmethod
    def of_table(table: pa.Table) -> Windows:
        """The windows of rows that hold all of their chunks."""
        ids = table["input_ids"].combine_chunks()
        ids = pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) else ids
        starts = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
        spans_C2 = np.stack([table[name].to_numpy().astype(np.int64) for name in SPAN_COLUMNS], axis=1)
        return Windows(ids.drop_null(), spans_C2, np.append(starts, len(ids)))

    def __len__(self) -> int:
        return len(self.input_ids)

    def slice(self, start: int, num: int) -> Windows:
        """`num` windows from `start` on."""
        edges = self.edges[start : start + num + 1]
        return Windows(self.input_ids.slice(start, num), self.spans_C2[edges[0] : edges[-1]], edges - edges[0])

    def batches(self, plan: Plan) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """The batches of a plan over the windows, each with the numbers of its S chunks, in the batch's order."""
        counts_M = np.diff(self.edges)
        batches = batching.batches(self.input_ids, plan)
        for batch, start, end in zip(batches, plan.cuts[:-1], plan.cuts[1:], strict=True):
            windows_B = plan.order[start:end]
            rows_S = np.repeat(np.arange(len(windows_B)), counts_M[windows_B])
            first_S = np.cumsum(counts_M[windows_B]) - counts_M[windows_B]
            chunks_S = self.edges[windows_B][rows_S] + np.arange(len(rows_S)) - first_S[rows_S]
            chunks_S3 = np.concatenate([rows_S[:, None], self.spans_C2[chunks_S]], axis=1)
            yield dataclasses.replace(batch, chunks_S3=chunks_S3), chunks_S


def tokens_read(table: pa.Table) -> NDArray[np.int64]:
    """How many tokens the model reads for each row at the TOKENS stage; a window counts where its first chunk is."""
    if SPAN_COLUMNS[0] not in table.column_names:
        return np.asarray(table["num_tokens"].to_numpy(), np.int64)
    return np.asarray(pc.list_value_length(table["input_ids"]).fill_null(0).to_numpy(), np.int64)


@dataclass(frozen=True, slots=True)
class ChunkTokens:
    """What the C chunks of some documents are made of."""

    input_ids: pa.ListArray  # list<int32>: its window's; null where that is the window of the chunk before
    spans_C2: NDArray[np.int64]  # start and end of its tokens in its window
    num_tokens_C: NDArray[np.int64]  # of the chunk itself
    lost_C: NDArray[np.int64]  # tokens beyond a whole window
    window_chars_C2: NDArray[np.int64]  # what of the document its window shows

    def columns(self) -> dict[str, pa.Array]:
        """What `Windows.of_table` takes."""
        spans = {name: pa.array(self.spans_C2[:, i], pa.int32()) for i, name in enumerate(SPAN_COLUMNS)}
        return {"input_ids": self.input_ids, **spans}


def tokenize_documents(
    documents: Iterable[tuple[str, NDArray[np.int64]]], tokenizer: DocumentTokenizer, overlap: int
) -> ChunkTokens:
    """The windows of documents, each given with its chunks (chars_C2: start and end of each, in order)."""
    windows = [window for text, chars_C2 in documents for window in _windows(text, chars_C2, tokenizer, overlap)]
    no_chunk = np.empty((0, 2), np.int64)
    own_C2 = np.concatenate([no_chunk, *(window.own_C2 for window in windows)])
    kept_C2 = np.concatenate([no_chunk, *(window.kept_C2 for window in windows)])
    num_chunks = [len(window.own_C2) for window in windows]
    num_tokens_C = np.diff(kept_C2)[:, 0]
    lengths_C = np.repeat([len(window.ids) for window in windows], num_chunks).astype(np.int64)
    return ChunkTokens(
        pa.array(
            [ids for window in windows for ids in (window.ids, *[None] * (len(window.own_C2) - 1))],
            pa.list_(pa.int32()),
        ),
        # A chunk that the tokenizer makes nothing of (control characters) has the vector of its window.
        np.where(num_tokens_C[:, None] > 0, kept_C2, np.stack([np.zeros_like(lengths_C), lengths_C], axis=1)),
        num_tokens_C,
        np.diff(own_C2)[:, 0] - num_tokens_C,
        np.repeat(np.array([window.chars for window in windows], np.int64).reshape(-1, 2), num_chunks, axis=0),
    )


@dataclass(frozen=True, slots=True)
class _Window:
    ids: NDArray[np.int32]
    own_C2: NDArray[np.int64]  # where the tokens of its chunks are in it
    kept_C2: NDArray[np.int64]  # of those, what is in it
    chars: tuple[int, int]


def _windows(text: str, chars_C2: NDArray[np.int64], tokenizer: DocumentTokenizer, overlap: int) -> Iterator[_Window]:
    tokens = tokenizer.encode_document(text)
    tokens_C2 = token_spans(tokens.offsets_T2, chars_C2)
    for group in group_chunks(tokens_C2, len(tokens.ids_T), tokens.room, overlap):
        inside = slice(group.start, group.end)
        ids = np.concatenate([tokens.before, tokens.ids_T[inside], tokens.after]).astype(np.int32)
        shift = len(tokens.before) - group.start
        own_C2 = tokens_C2[group.first : group.stop]
        offsets_T2 = tokens.offsets_T2[inside]
        chars = (int(offsets_T2[0, 0]), int(offsets_T2[-1, 1])) if len(offsets_T2) else (0, len(text))
        yield _Window(ids, own_C2 + shift, np.minimum(own_C2, group.end) + shift, chars)


def token_spans(offsets_T2: NDArray[np.int64], chars_C2: NDArray[np.int64]) -> NDArray[np.int64]:
    """spans_C2: the tokens that have a character in common with each chunk; empty where none has."""
    first_C = np.searchsorted(offsets_T2[:, 1], chars_C2[:, 0], side="right")
    stop_C = np.searchsorted(offsets_T2[:, 0], chars_C2[:, 1], side="left")
    return np.stack([first_C, np.maximum(first_C, stop_C)], axis=1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Group:
    """Chunks first:stop of a document, whose window is its tokens start:end."""

    first: int
    stop: int
    start: int
    end: int


def group_chunks(spans_C2: NDArray[np.int64], num_tokens: int, room: int, overlap: int) -> Iterator[Group]:
    """Cut a document's chunks (spans_C2 of its tokens) into windows of at most `room` tokens.

    All of it where it fits. Else as few windows as hold every chunk with `overlap // 2` tokens on either side, or up to
    the document's ends; the context gives way to a chunk that leaves no room for it.
    """
    if num_tokens <= room:
        yield Group(0, len(spans_C2), 0, num_tokens)
        return
    starts_C, ends_C = spans_C2[:, 0], spans_C2[:, 1]
    before_C, after_C = np.minimum(starts_C, overlap // 2), np.minimum(num_tokens - ends_C, overlap // 2)
    first = 0
    while first < len(spans_C2):
        start = int(starts_C[first] - before_C[first])
        stop = max(first + 1, int(np.searchsorted(ends_C + after_C, start + room, side="right")))
        before, after = int(before_C[first]), int(after_C[stop - 1])
        spare = max(0, room - int(ends_C[stop - 1] - starts_C[first]))
        after = min(after, max(spare - before, spare // 2))
        start = int(starts_C[first]) - min(before, spare - after)
        yield Group(first, stop, start, min(int(ends_C[stop - 1]) + after, start + room))
        first = stop
