"""The steps of the pipeline with late chunks: a tokenizer of words, and an embedder that fails on demand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from operators.corpus.chunking_config import Chunking
from operators.embedder.tokens.document_offsets import DocumentTokens
from operators.embedder.tokens.windows import Windows, tokens_read
from operators.embedder.vectors import Vectors
from operators.pipeline.stages import embed_fragment, inputs_of, tokenize_fragment
from operators.planning.sampling import sample_of
from operators.work.fragment import FragmentBatch
from operators.work.guard import AttemptLedger, Ledger
from tests.operators.pipeline.test_stages import DIM, IDENTITY, MAX_WORDS, KnownKillers, WordTokenizer, rows_batch

CHUNKING = Chunking(tokens=10, late=True, window_overlap=6)
BEGIN, END = 101, 102


class DocumentWords(WordTokenizer):
    """One token a word, its length being its id; a window has MAX_WORDS of them between BEGIN and END."""

    max_text_tokens = MAX_WORDS

    def encode_document(self, text: str) -> DocumentTokens:
        """All words."""
        ids_T = np.array([len(word) for word in text.split()], np.int32)
        return DocumentTokens(ids_T, self.encode_with_offsets(text), [BEGIN], [END], MAX_WORDS)


class ChunkEmbedder:
    """The vector of a chunk is (its first token, its length, its place, its window's length)."""

    def __init__(self, not_finite: int | None = None, raises: int | None = None) -> None:
        self.not_finite, self.raises = not_finite, raises

    def __call__(self, windows: Windows) -> Vectors:
        """One vector a chunk."""
        values = []
        for number, ids in enumerate(windows.input_ids.to_pylist()):
            assert (ids[0], ids[-1]) == (BEGIN, END)
            if self.raises in ids:
                raise RuntimeError("index out of range")
            for start, end in windows.spans_C2[windows.edges[number] : windows.edges[number + 1]].tolist():
                values.append([ids[start], end - start, start, len(ids)])
        values_CD = np.array(values, np.float32).reshape(-1, DIM)
        finite_C = values_CD[:, 0] != self.not_finite
        return Vectors(values_CD * finite_C[:, None], finite_C, padding_tokens=len(windows))


def tokenized(texts: list[str], ledger: Ledger | None = None) -> FragmentBatch:
    return tokenize_fragment(rows_batch(texts), CHUNKING, DocumentWords(), ledger or AttemptLedger())


def embedded(batch: FragmentBatch, embedder: Callable[[Windows], Vectors], ledger: Ledger | None = None) -> pa.Table:
    return embed_fragment(batch, embedder, IDENTITY, ledger or AttemptLedger())


def words(count: int, odd: dict[int, int] | None = None) -> str:
    """A text of `count` words of two letters, those at the places of `odd` of as many letters as it says."""
    return " ".join("x" * (odd or {}).get(i, 2) for i in range(count))


def test_windows_travel_in_the_rows_of_their_first_chunks() -> None:
    batch = tokenized([words(25), words(3), words(120)])
    table = batch.table
    assert table["chunk"].to_pylist() == [0, 1, 2, 0, *range(12)]
    lengths = [len(ids) if ids is not None else None for ids in table["input_ids"].to_pylist()]
    # of 120 words: four chunks and three words after them; four with three on both sides; the last four
    assert lengths == [27, None, None, 5, 45, *[None] * 3, 48, *[None] * 3, 45, *[None] * 3]
    assert table["num_tokens"].to_pylist() == [10, 10, 5, 3, *[10] * 12]
    assert tokens_read(table).tolist() == [length or 0 for length in lengths]
    assert not any(table["truncated"].to_pylist())
    assert batch.counts.lost_tokens == 0
    assert inputs_of(table).edges.tolist() == [0, 3, 4, 8, 12, 16]


def test_vectors_stand_beside_their_chunks_and_computed_tokens_are_counted() -> None:
    batch = embedded(tokenized([words(25), words(3), words(120)]), ChunkEmbedder())
    rows = batch.table.to_pylist()
    assert {"input_ids", "span_start", "span_end", "tokens_read"}.isdisjoint(batch.table.column_names)
    assert [row["embedding"][1:] for row in rows[:4]] == [[10, 1, 27], [10, 11, 27], [5, 21, 27], [3, 1, 5]]
    assert [row["embedding"][2:] for row in rows[8:12]] == [[4, 48], [14, 48], [24, 48], [34, 48]]
    counts = batch.counts
    assert (counts.chunks, counts.tokens, counts.padding_tokens) == (16, 27 + 5 + 45 + 48 + 45, 5)
    assert sum(counts.lengths) == 16


def test_no_document_at_all() -> None:
    batch = embedded(tokenized([]), ChunkEmbedder())
    assert (batch.table.num_rows, batch.counts.tokens) == (0, 0)


@pytest.mark.parametrize("fault", [{"not_finite": 9}, {"raises": 9}])
def test_a_document_goes_with_all_its_windows(fault: dict[str, int]) -> None:
    """The word of nine letters begins a chunk in the second window of document 1."""
    batch = embedded(tokenized([words(25), words(120, {50: 9}), words(60)]), ChunkEmbedder(**fault))
    assert batch.table["doc_id"].to_pylist() == ["d0"] * 3 + ["d2"] * 6
    assert batch.rejected["doc_id"].to_pylist() == ["d1"]
    reason = "non_finite_vector" if "not_finite" in fault else "embedding_failed"
    assert batch.rejected["reason"].to_pylist() == [reason]
    assert batch.counts.tokens == 27 + sum(tokens_read(tokenized([words(60)]).table))


def test_a_window_that_kills_its_process_rejects_its_document() -> None:
    texts = [words(25), words(120), words(60)]
    batch = embedded(tokenized(texts), ChunkEmbedder(), KnownKillers(2))  # the second window of the second document
    assert batch.rejected.select(["doc_id", "reason"]).to_pylist() == [{"doc_id": "d1", "reason": "kills_worker"}]
    assert batch.table["doc_id"].to_pylist() == ["d0"] * 3 + ["d2"] * 6
    batch = embedded(tokenized(texts, KnownKillers(0)), ChunkEmbedder())
    assert batch.rejected["doc_id"].to_pylist() == ["d0"]
    assert batch.table["doc_id"].to_pylist() == ["d1"] * 12 + ["d2"] * 6


def test_a_plan_counts_the_tokens_that_are_read() -> None:
    batch = tokenized([words(25), words(120)])
    sample = sample_of(1000, 1000, batch)
    assert sample.tokens_by_chunk_C.tolist() == [10, 10, 5, *[10] * 12]
    assert sample.read_C.tolist() == [27, 0, 0, 45, 0, 0, 0, 48, 0, 0, 0, 45, 0, 0, 0]
