"""Late chunking at the tokenizing step: columns of chunks that share the windows of their documents.

A row has its window's token ids, or null where the window is that of the row before, and in `span_start`, `span_end`
its own tokens within the window (operators.embedder.tokens.windows).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.corpus.chunking_config import Chunking
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.tokens.windows import tokenize_documents


def late_chunk_columns(
    rows: pa.Table, chunks: pa.Table, chunking: Chunking, tokenizer: Tokenizer
) -> tuple[dict[str, pa.Array], int]:
    """The TOKENS columns of the chunks of whole documents (`rows`), and how many tokens were lost."""
    overlap = chunking.window_overlap_of(tokenizer.max_text_tokens)
    tokens = tokenize_documents(_documents(rows, chunks), tokenizer, overlap)
    columns = {
        "text_hash": text_hashes(chunks["text"].to_pylist(), _window_digests(rows, chunks, tokens.window_chars_C2)),
        "num_tokens": pa.array(tokens.num_tokens_C, pa.int32()),
        "truncated": pa.array(tokens.lost_C > 0),
        **tokens.columns(),
    }
    return columns, int(tokens.lost_C.sum())


def text_hashes(texts: Sequence[str], keys: Sequence[bytes] | None = None) -> pa.Array:
    """A digest of each text, or of it and what else its vector was made from (`keys`)."""
    keys = keys if keys is not None else [b""] * len(texts)
    digests = [
        hashlib.blake2b(text.encode(), digest_size=16, key=key).digest() for text, key in zip(texts, keys, strict=True)
    ]
    return pa.array(digests, pa.binary(16))


def _documents(rows: pa.Table, chunks: pa.Table) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Each document's text with its chunks' characters."""
    chars_C2 = np.stack([chunks[name].to_numpy() for name in ("char_start", "char_end")], axis=1)
    edges = np.append(np.flatnonzero(chunks["chunk"].to_numpy() == 0), len(chars_C2))
    for text, start, end in zip(rows["text"], edges[:-1], edges[1:], strict=True):
        yield text.as_py(), chars_C2[start:end]


def _window_digests(rows: pa.Table, chunks: pa.Table, window_chars_C2: NDArray[np.int64]) -> list[bytes]:
    """A digest of what each chunk's window shows: a vector changes with it, though the chunk's own text does not."""
    digests: list[bytes] = []
    last: tuple[int, int, int] | None = None
    document, text = -1, ""
    for chunk, (start, end) in zip(chunks["chunk"].to_pylist(), window_chars_C2.tolist(), strict=True):
        if chunk == 0:
            document += 1
            text = rows["text"][document].as_py()
        if (document, start, end) != last:
            last = (document, start, end)
            digest = hashlib.blake2b(text[start:end].encode(), digest_size=16).digest()
        digests.append(digest)
    return digests
