"""The steps of the pipeline with a tokenizer of words and an embedder that fails on demand."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.corpus.chunking_config import Chunking
from operators.embedder.tokens.tokenizing import Tokens
from operators.embedder.vectors import Vectors
from operators.pipeline.stages import MAX_FAILING_ROWS, embed_fragment, tokenize_fragment, unreadable_unit
from operators.store.dataset import Identity, encode_schema
from operators.work.fragment import (
    LENGTH_EDGES,
    REJECTED_SCHEMA,
    Counts,
    Extent,
    Fragment,
    FragmentBatch,
    SourceFile,
    Unit,
)
from operators.work.guard import Attempt, AttemptLedger

DIM = 4
IDENTITY = Identity("f", "none", DIM, "float32", True, None, encode_schema(pa.schema([("lang", pa.string())])), 0)
MAX_WORDS = 50


class WordTokenizer:
    """One token a word, its length being its id; texts are cut at MAX_WORDS."""

    def encode_with_offsets(self, text: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Offsets of the words."""
        return np.array([match.span() for match in re.finditer(r"\S+", text)], np.int64).reshape(-1, 2)

    def __call__(self, texts: pa.Array) -> Tokens:
        """Token ids of the texts."""
        words = [text.split() for text in texts.to_pylist()]
        ids = [[len(word) for word in each[:MAX_WORDS]] for each in words]
        return Tokens(
            pa.array(ids, pa.list_(pa.int32())),
            pa.array([len(each) for each in ids], pa.int32()),
            pa.array([len(each) > MAX_WORDS for each in words], pa.bool_()),
            sum(max(0, len(each) - MAX_WORDS) for each in words),
        )


class ScriptedEmbedder:
    """The vector of a row is (its first token, its length, 1, 1); rows that begin with certain tokens misbehave."""

    def __init__(self, not_finite: int | None = None, raises: int | None = None) -> None:
        self.not_finite, self.raises = not_finite, raises
        self.num_calls = 0

    def __call__(self, input_ids: pa.ListArray) -> Vectors:
        """One vector a row."""
        self.num_calls += 1
        rows = input_ids.to_pylist()
        if any(row[0] == self.raises for row in rows):
            raise RuntimeError("index out\nof range")
        values = np.array([[row[0], len(row), 1, 1] for row in rows], np.float32).reshape(len(rows), DIM)
        finite = np.array([row[0] != self.not_finite for row in rows], bool)
        values[~finite] = 0
        return Vectors(values, finite, padding_tokens=len(rows))


def rows_batch(texts: list[str]) -> FragmentBatch:
    """A fragment as the reader gives it."""
    size = len(texts)
    table = pa.table(
        {
            "doc_id": pa.array([f"d{i}" for i in range(size)], pa.string()),
            "source_path": pa.array(["/p"] * size, pa.string()),
            "source_row": pa.array(range(size), pa.int64()),
            "text": pa.array(texts, pa.string()),
            "lang": pa.array(["en"] * size, pa.string()),
        }
    )
    fragment = Fragment(Unit.of((Extent(SourceFile("/p", 1, "1")),), ""), 0, True)
    return FragmentBatch(fragment, table, REJECTED_SCHEMA.empty_table(), Counts(rows=size))


def tokenized(texts: list[str], chunk_tokens: int | None = None) -> FragmentBatch:
    return tokenize_fragment(rows_batch(texts), Chunking(tokens=chunk_tokens), WordTokenizer(), AttemptLedger())


def embedded(batch: FragmentBatch, embedder: Callable[[pa.ListArray], Vectors]) -> FragmentBatch:
    return embed_fragment(batch, embedder, IDENTITY, AttemptLedger())


def words(count: int, first: int = 3) -> str:
    """A text of `count` words, the first of `first` letters."""
    return " ".join(["x" * first, *["yy"] * (count - 1)])


def test_tokens_have_all_columns_and_say_what_was_cut() -> None:
    texts = [words(3), words(60), "é 😀"]
    batch = tokenized(texts)
    names = ["doc_id", "source_path", "source_row", "chunk", "char_start", "char_end"]
    names += ["text_hash", "num_tokens", "truncated", "input_ids", "lang"]
    assert batch.table.column_names == names
    rows = batch.table.to_pylist()
    assert [row["num_tokens"] for row in rows] == [3, 50, 2]
    assert [row["truncated"] for row in rows] == [False, True, False]
    assert [row["char_end"] for row in rows] == [len(text) for text in texts]
    assert [row["text_hash"] for row in rows] == [hashlib.blake2b(t.encode(), digest_size=16).digest() for t in texts]
    assert batch.counts.lost_tokens == 10
    assert batch.counts.seconds["tokenize"] > 0


def test_chunks_are_hashed_each_for_itself() -> None:
    batch = tokenized([words(25), words(5)], chunk_tokens=10)
    rows = batch.table.to_pylist()
    assert [(row["doc_id"], row["chunk"]) for row in rows] == [("d0", 0), ("d0", 1), ("d0", 2), ("d1", 0)]
    text = words(25)
    for row in rows[:3]:
        part = text[row["char_start"] : row["char_end"]]
        assert row["text_hash"] == hashlib.blake2b(part.encode(), digest_size=16).digest()
        assert row["num_tokens"] == len(part.split())
    assert sum(row["num_tokens"] for row in rows[:3]) == 25


def test_vectors_stand_beside_their_rows() -> None:
    lengths = [3, 9, 1, 40, 17]
    batch = embedded(tokenized([words(n, first=i + 1) for i, n in enumerate(lengths)]), ScriptedEmbedder())
    assert batch.table["embedding"].to_pylist() == [[i + 1, n, 1, 1] for i, n in enumerate(lengths)]
    assert "input_ids" not in batch.table.column_names
    counts = batch.counts
    assert (counts.chunks, counts.tokens, counts.padding_tokens, counts.rejected) == (5, sum(lengths), 5, 0)
    expected = [0] * (len(LENGTH_EDGES) + 1)
    for n in lengths:
        expected[next(i for i, edge in enumerate(LENGTH_EDGES) if n <= edge)] += 1
    assert list(counts.lengths) == expected


@pytest.mark.parametrize("texts", [[], ["one"]])
def test_few_or_no_rows(texts: list[str]) -> None:
    batch = embedded(tokenized(texts), ScriptedEmbedder())
    assert batch.table.num_rows == batch.counts.chunks == len(texts)
    assert sum(batch.counts.lengths) == len(texts)
    assert batch.table.schema.field("embedding").type == pa.list_(pa.float32(), DIM)


def test_vectors_that_are_not_finite_reject_their_document() -> None:
    batch = embedded(tokenized([words(5), words(5, first=7), words(5)]), ScriptedEmbedder(not_finite=7))
    assert batch.table["doc_id"].to_pylist() == ["d0", "d2"]
    assert batch.rejected.select(["doc_id", "source_row", "reason"]).to_pylist() == [
        {"doc_id": "d1", "source_row": 1, "reason": "non_finite_vector"}
    ]
    assert (batch.counts.chunks, batch.counts.rejected, batch.counts.tokens) == (2, 1, 10)


def test_a_document_goes_with_all_its_chunks_and_once() -> None:
    """Chunks of ten words; those of the second document that begin with a word of 7 letters have no vector."""
    bad = " ".join([*["yy"] * 10, "z" * 7, *["yy"] * 9, "z" * 7, *["yy"] * 9])
    before = tokenized([words(25), bad, words(25)], chunk_tokens=10)
    first_ids = [ids[0] for ids in before.table["input_ids"].to_pylist()]
    assert first_ids.count(7) == 2
    for embedder in (ScriptedEmbedder(not_finite=7), ScriptedEmbedder(raises=7)):
        batch = embedded(before, embedder)
        assert batch.table["doc_id"].to_pylist() == ["d0"] * 3 + ["d2"] * 3
        assert batch.table["chunk"].to_pylist() == [0, 1, 2] * 2
        assert batch.rejected["doc_id"].to_pylist() == ["d1"]
        assert batch.counts.rejected == 1


@settings(deadline=None)
@given(bad=st.sets(st.integers(0, 99), max_size=MAX_FAILING_ROWS))
def test_rows_on_which_the_model_raises_are_found(bad: set[int]) -> None:
    embedder = ScriptedEmbedder(raises=7)
    batch = embedded(tokenized([words(5, first=7 if i in bad else 3) for i in range(100)]), embedder)
    assert batch.table["source_row"].to_pylist() == [i for i in range(100) if i not in bad]
    assert batch.table["embedding"].to_pylist() == [[3, 5, 1, 1]] * (100 - len(bad))
    assert batch.rejected["source_row"].to_pylist() == sorted(bad)
    assert set(batch.rejected["message"].to_pylist()) <= {"RuntimeError: index out of range"}
    assert embedder.num_calls <= 1 + 2 * 7 * len(bad)


def test_a_model_that_fails_on_everything_stops_the_run() -> None:
    embedder = ScriptedEmbedder(raises=7)
    with pytest.raises(RuntimeError, match="index out"):
        embedded(tokenized([words(5, first=7)] * 200), embedder)
    assert embedder.num_calls < 100


def test_other_errors_are_bugs() -> None:
    def broken(input_ids: pa.ListArray) -> Vectors:
        raise KeyError("weights")

    with pytest.raises(KeyError):
        embedded(tokenized([words(5)] * 4), broken)


class KnownKillers(AttemptLedger):
    """A ledger after the deaths: it gives up these rows at once."""

    def __init__(self, *killers: int) -> None:
        super().__init__()
        self._killers = killers

    def begin(self, key: str, num_rows: int) -> Attempt:
        """Enter an attempt."""
        super().begin(key, num_rows)
        return Attempt(7, None, self._killers)


def test_killers_of_either_stage_are_rejected_and_counted() -> None:
    texts = [words(25) for _ in range(40)]
    batch = tokenize_fragment(rows_batch(texts), Chunking(tokens=10), WordTokenizer(), KnownKillers(5, 6))
    assert batch.table["source_row"].to_pylist() == [i for i in range(40) if i not in (5, 6) for _ in range(3)]
    batch = embed_fragment(batch, ScriptedEmbedder(), IDENTITY, KnownKillers(1, 30))
    # Chunk 1 belongs to document 0, chunk 30 to document 12: two went before it.
    assert batch.rejected["source_row"].to_pylist() == [5, 6, 0, 12]
    assert set(batch.rejected["reason"].to_pylist()) == {"kills_worker"}
    assert batch.table.num_rows == 36 * 3
    assert (batch.counts.rejected, batch.counts.deaths, batch.counts.chunks) == (4, 14, 108)


def test_a_unit_that_cannot_be_read_is_accounted_for_by_file() -> None:
    extents = tuple(Extent(SourceFile(f"/p{i}", 1, "1")) for i in range(3))
    empty = rows_batch([])
    batch = unreadable_unit(
        FragmentBatch(Fragment(Unit.of(extents, ""), 0, True), empty.table, empty.rejected, Counts()), deaths=9
    )
    assert batch.rejected["source_path"].to_pylist() == ["/p0", "/p1", "/p2"]
    assert (batch.counts.rows, batch.counts.rejected, batch.counts.deaths, batch.ids_digest) == (3, 3, 9, "")
