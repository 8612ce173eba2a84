"""Cut documents into chunks that a model can read whole, at places where a reader would cut them.

Lengths are counted in the model's own tokens; what comes out is character spans, `text[char_start:char_end]` being the
chunk to the letter. A chunk ends at the last blank line in its second half, else at the last sentence end there, else
line end, else white space, else between two tokens, and never begins or ends with white space.

A document is tokenized once, in pieces of 64k characters between two words. The tokens are those of the whole: a
tokenizer (WordPiece, BPE, Unigram) splits at white space before it forms tokens, so a word's tokens follow from that
word and the space before it. At worst (SentencePiece marks the start of its input) a seam has one token too many.

A chunk tokenized alone has at most `tokens` tokens, although its tokens are not always those of the document: one that
starts with "word" where the document had " word" begins anew, and so does one cut inside of a word. So its first word
is tokenized alone, and the count is that plus the document's tokens from there on; cut before white space, the tokens
to the left stay the same, since greedy, merged and best-path tokenizers all leave what stands before a token boundary
as it is. Where one of these conditions does not hold (no space near, a hard cut, a seam inside) the chunk is tokenized
again and shortened until it fits. Only a single character of more than `tokens` tokens (Unicode has some that
normalise to 18 letters) makes a chunk that is too long, which the embedder's tokenizer then truncates and counts.

Time is linear in the document. Memory beyond the document and its chunks is the tokens of one piece and one chunk.
"""

from __future__ import annotations

import re
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.corpus.chunking_config import Chunking

PIECE_CHARS = 65536
_HEAD_CHARS = 64  # a first word longer than this is not worth tokenizing twice: the whole chunk is checked instead
_WORD_NEAR_TOKENS = 8  # how far an overlapping chunk's start moves back to begin with a whole word

# Each pattern ends where a chunk may end and, thanks to the greedy prefix, matches the last such place of a range.
_CLOSERS = "\"'”’»)\\]」』）》】"  # quotes and brackets that still belong to the sentence
_PARAGRAPH_END = re.compile(r"(?s:.*)(?=\n[^\S\n]*\n|\u2029)")
_SENTENCE_END = re.compile(
    # "J. Smith" and "e.g. this" are no ends: a lone capital before, or a small letter after.
    rf"(?s:.*)(?:(?:(?<!\b[A-Z])\.|[!?…।॥؟۔])[{_CLOSERS}]{{0,3}}(?=\s)(?!\s+[a-z])|[。！？｡][{_CLOSERS}]{{0,3}})"
)
_LINE_END = re.compile(r"(?s:.*)(?=[\n\r\u2028])")
_WORD_END = re.compile(r"(?s:.*)(?=\s)")
_BETWEEN_WORDS = re.compile(r"(?s:.*)\w(?=\s\w)")
_FIRST_WORD = re.compile(r"[^ \t\n\r]+(?=[ \t\n\r])")
_SPACES = re.compile(r"\s*")
_TO_LAST_LETTER = re.compile(r"(?s:.*)[\w\s]")
# The white space that every tokenizer takes for white space; BERT deletes \f, \v and \x1c-\x1f and joins the words.
_PLAIN_SPACES = " \t\n\r"


class OffsetsTokenizer(Protocol):
    """Tells where a text's own tokens are (no special tokens, no prompt, no truncation)."""

    def encode_with_offsets(self, text: str) -> NDArray[np.int64]:
        """Character offsets (start, end) of the tokens in order, shape (T, 2)."""


def chunk_rows(rows: pa.Table, chunking: Chunking, tokenizer: OffsetsTokenizer) -> pa.Table:
    """One row per chunk: doc_id, source_path, source_row, chunk, char_start, char_end, text, then the kept columns."""
    if chunking.tokens is None:
        num_rows = rows.num_rows
        chunk, char_start = np.zeros(num_rows, np.int32), np.zeros(num_rows, np.int64)
        char_end, text = pc.utf8_length(rows["text"]).cast(pa.int64()), rows["text"]
    else:
        spans_of_row = []
        texts: list[str] = []
        for scalar in rows["text"]:
            document = scalar.as_py()
            spans = chunk_spans(document, chunking, tokenizer)
            texts.extend(document[start:end] for start, end in spans)
            spans_of_row.append(np.array(spans, np.int64))
        num_chunks = np.array([len(spans) for spans in spans_of_row], np.int64)
        spans_C2 = np.concatenate(spans_of_row) if spans_of_row else np.zeros((0, 2), np.int64)
        first_chunk = np.repeat(np.cumsum(num_chunks) - num_chunks, num_chunks)
        chunk = (np.arange(len(spans_C2)) - first_chunk).astype(np.int32)
        char_start, char_end, text = spans_C2[:, 0], pa.array(spans_C2[:, 1]), pa.array(texts, pa.string())
        rows = rows.drop_columns(["text"]).take(np.repeat(np.arange(rows.num_rows), num_chunks))
    fixed = ("doc_id", "source_path", "source_row")
    columns = {name: rows[name] for name in fixed}
    columns |= {"chunk": pa.array(chunk), "char_start": pa.array(char_start), "char_end": char_end}
    columns |= {"text": text}
    columns |= {name: rows[name] for name in rows.column_names if name not in columns}
    return pa.table(columns)


def chunk_spans(text: str, chunking: Chunking, tokenizer: OffsetsTokenizer) -> list[tuple[int, int]]:
    """Character spans of a document's chunks, in order; together they hold all that is not white space."""
    assert chunking.tokens is not None, "chunk_spans needs chunking.tokens"
    if not text.strip():
        return [(0, len(text))]
    document = _Document(text, chunking.tokens, chunking.overlap, tokenizer)
    spans: list[tuple[int, int]] = []
    start = covered = document.first
    while True:
        end = document.chunk_end(start, covered)
        if end is None:  # the overlap left no room for anything new
            start = document.skip_spaces(covered)
            end = document.chunk_end(start, start)
            assert end is not None, "a chunk of new text always has an end"
        spans.append((start, end))
        if end >= document.last:
            return spans
        start, covered = document.next_start(start, end), end


class _Document:
    """A text with the tokens of its current stretch; arrays end in _T (tokens), positions are characters."""

    def __init__(self, text: str, max_tokens: int, overlap: int, tokenizer: OffsetsTokenizer) -> None:
        self.text = text
        self.first = len(text) - len(text.lstrip())
        self.last = len(text.rstrip())
        self._max_tokens = max_tokens
        self._overlap = overlap
        self._encode = tokenizer.encode_with_offsets
        self._starts_T = np.empty(0, np.int64)
        self._ends_T = np.empty(0, np.int64)
        self._tokenized_to = self.first
        self._seams: list[int] = []  # where one piece was tokenized apart from the next

    def skip_spaces(self, position: int) -> int:
        """The first position from here on that is not white space."""
        return _SPACES.match(self.text, position).end()  # type: ignore[union-attr]  # matches the empty string too

    def chunk_end(self, start: int, covered: int) -> int | None:
        """Where the chunk that begins at `start` ends; None where it cannot reach beyond `covered`."""
        self._forget_before(start)
        covered = max(start, covered)
        limit, uncounted = self._limit(start)
        while True:
            if limit <= covered:
                return None
            end = self.last if limit >= self.last else self._best_end(covered, limit)
            if end <= covered:
                return None
            if uncounted is not None and self._surely_fits(start, end, uncounted):
                return end
            alone_T2 = self._encode(self.text[start:end])
            if len(alone_T2) <= self._max_tokens:
                return end
            limit, uncounted = start + _fitting_chars(alone_T2, self._max_tokens), None
            if limit >= end:  # a single character of too many tokens
                return end

    def next_start(self, start: int, end: int) -> int:
        """Where the chunk after [start, end) begins: about `overlap` tokens earlier, with a sentence or word."""
        after = self.skip_spaces(end)
        begin, stop = self._tokens_before(start), int(self._starts_T.searchsorted(end))
        ideal = max(stop - self._overlap, begin + 1)
        if not self._overlap or ideal >= stop:
            return after
        # The next chunk must end well beyond this one, so the start moves back by a quarter of what is new at most.
        near = min(self._overlap, self._max_tokens - self._overlap) // 4
        lowest, highest = max(ideal - near, begin + 1), min(ideal + near, stop - 1)
        position = self._boundary(
            int(self._starts_T[lowest]), int(self._starts_T[highest]), (_PARAGRAPH_END, _SENTENCE_END, _LINE_END)
        )
        if position is None:
            lowest = max(ideal - min(near, _WORD_NEAR_TOKENS), begin + 1)
            position = self._boundary(int(self._starts_T[lowest]), int(self._starts_T[ideal]), (_WORD_END,))
        if position is None:
            position = int(self._starts_T[ideal])
        position = self.skip_spaces(position)
        return position if start < position < after else after

    def _limit(self, start: int) -> tuple[int, int | None]:
        """How far a chunk of at most `max_tokens` reaches by the document's tokens, and what to subtract from a token's
        index to count it in the chunk; None where that count is not sure."""
        begin = self._tokens_before(start)
        uncounted: int | None = begin
        if start > self.first:
            uncounted = self._uncounted(start)
        stop = (begin if uncounted is None else uncounted) + self._max_tokens
        self._tokenize_to(stop + 1)
        if len(self._starts_T) <= stop:
            return self.last, uncounted
        # The tokens of one character cannot be parted: step back before it, or over it where it is the first.
        k = stop
        while k > begin and self._ends_T[k - 1] > self._starts_T[k]:
            k -= 1
        if k == begin:
            k = begin + 1
            while k < len(self._starts_T) and self._ends_T[k - 1] > self._starts_T[k]:
                k += 1
        return int(self._ends_T[k - 1]), uncounted

    def _uncounted(self, start: int) -> int | None:
        """Index of the document's token that would be the chunk's first if its first word had as many tokens in the
        document as it has alone; None where that word is long or no token ends with it."""
        word = _FIRST_WORD.match(self.text, start, min(start + _HEAD_CHARS, self.last))
        if word is None:
            return None
        self._tokenize_to(self._tokens_before(word.end()) + 1)
        next_token = int(self._starts_T.searchsorted(word.end()))
        if next_token and self._ends_T[next_token - 1] > word.end():
            return None
        alone_tokens = len(self._encode(word.group()))
        return next_token - alone_tokens if alone_tokens <= self._max_tokens // 2 else None

    def _surely_fits(self, start: int, end: int, uncounted: int) -> bool:
        """Whether [start, end) tokenized alone is known to have no more than `max_tokens` tokens."""
        if any(start < seam < end for seam in self._seams):
            return False
        stop = int(self._starts_T.searchsorted(end))
        num_tokens = stop - uncounted
        if end < self.last:
            if self.text[end] not in _PLAIN_SPACES or self._ends_T[stop - 1] > end:
                return False
            # ".\n\n" can be one token (Llama 3, Qwen) whose offsets say "."; without the line ends it may be more.
            letter = _TO_LAST_LETTER.match(self.text, start, end)
            num_tokens += len(self.text[letter.end() if letter else start : end].encode())
        return num_tokens <= self._max_tokens

    def _best_end(self, covered: int, limit: int) -> int:
        """The best place to end in the second half of (covered, limit]."""
        middle = (self._tokens_before(covered) + int(self._starts_T.searchsorted(limit))) // 2
        lowest = max(int(self._starts_T[middle]), covered) if middle < len(self._starts_T) else covered
        patterns = (_PARAGRAPH_END, _SENTENCE_END, _LINE_END, _WORD_END)
        return self._boundary(lowest, limit, patterns) or covered + len(self.text[covered:limit].rstrip())

    def _boundary(self, lowest: int, highest: int, patterns: tuple[re.Pattern[str], ...]) -> int | None:
        """The last match in (lowest, highest] of the first pattern that has one, less the white space before it."""
        after = self.skip_spaces(highest)
        after += self.text[after : after + 1].isalpha()  # lets _SENTENCE_END see a small letter
        for pattern in patterns:
            match = pattern.match(self.text, lowest, after)
            if match:
                position = lowest + len(self.text[lowest : min(match.end(), highest)].rstrip())
                if position > lowest:
                    return position
        return None

    def _tokens_before(self, position: int) -> int:
        """How many of the tokens at hand end at or before a position."""
        return int(self._ends_T.searchsorted(position, side="right"))

    def _forget_before(self, position: int) -> None:
        keep = self._tokens_before(position)
        self._starts_T, self._ends_T = self._starts_T[keep:], self._ends_T[keep:]
        self._seams = [seam for seam in self._seams if seam > position]

    def _tokenize_to(self, num_tokens: int) -> None:
        """Tokenize on until there are more than `num_tokens` at hand, or the document ends."""
        while len(self._starts_T) <= num_tokens and self._tokenized_to < self.last:
            start, end = self._tokenized_to, _piece_end(self.text, self._tokenized_to, self.last)
            offsets_T2 = self._encode(self.text[start:end]) + start
            # Offsets of normalised text may step back (combining marks are put in order).
            starts_T = np.minimum.accumulate(offsets_T2[::-1, 0])[::-1]
            ends_T = np.maximum.accumulate(offsets_T2[:, 1])
            self._starts_T = np.concatenate([self._starts_T, starts_T])
            self._ends_T = np.concatenate([self._ends_T, ends_T])
            self._tokenized_to = end
            self._seams.append(end)


def _piece_end(text: str, start: int, last: int) -> int:
    """Where to stop tokenizing: between two words, one space apart where there is such a place, within the limit."""
    limit = start + PIECE_CHARS
    if limit >= last:
        return last
    for pattern in (_BETWEEN_WORDS, _WORD_END):
        match = pattern.match(text, start + PIECE_CHARS // 2, limit)
        if match:
            return match.end()
    return limit


def _fitting_chars(offsets_T2: NDArray[np.int64], max_tokens: int) -> int:
    """Characters of a text of too many tokens that may fit: up to the last token end that falls between two characters
    or, where tokens overlap all along, up to the first token too many; never none."""
    starts_T, ends_T = offsets_T2[:, 0], offsets_T2[:, 1]
    clean = np.flatnonzero(ends_T[:max_tokens] <= starts_T[1 : max_tokens + 1])
    return max(1, int(ends_T[clean[-1]] if len(clean) else starts_T[max_tokens]))
