"""Documents of any length to tokens, piece by piece: which characters each token is of.

Shapes: T tokens of a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import tokenizers
from numpy.typing import NDArray

from operators.embedder.tokens.truncating import word_end

PIECE_CHARS = 1 << 17  # a document is tokenized for chunking in pieces of this size, which bounds memory too


@dataclass(frozen=True, slots=True)
class DocumentTokens:
    """All T tokens of a document, however long it is, and what goes around those that the model reads at once."""

    ids_T: NDArray[np.int32]
    offsets_T2: NDArray[np.int64]  # characters (start, end) of the document; neither ever steps back
    before: list[int]  # special tokens and prompt
    after: list[int]
    room: int  # tokens of the document that the model reads at once, beside those


def document_tokens(
    encode: Callable[[str], tokenizers.Encoding],
    text: str,
    prompt: str,
    before: list[int],
    after: list[int],
    max_tokens: int,
) -> DocumentTokens:
    """All tokens of a document; `prompt` is tokenized with its beginning, and is before every window like `before`."""
    ids, offsets = [], []
    for start, piece in pieces(text):
        encoding = encode(prompt + piece)
        offsets_T2 = _never_back(offsets_of(encoding))
        # a blank at the prompt's end becomes part of the text's first token
        of_prompt = int(np.searchsorted(offsets_T2[:, 1], len(prompt.rstrip(" ")), side="right")) if prompt else 0
        before = [*before, *encoding.ids[:of_prompt]]
        ids.append(np.array(encoding.ids[of_prompt:], np.int32))
        offsets.append((offsets_T2[of_prompt:] - len(prompt)).clip(min=0) + start)
        prompt = ""
    room = max_tokens - len(before) - len(after)
    return DocumentTokens(np.concatenate(ids), np.concatenate(offsets), before, after, room)


def pieces(text: str) -> Iterator[tuple[int, str]]:
    """A text in pieces of about PIECE_CHARS characters that end where a word does, with their starts; one at least."""
    start = 0
    while start < len(text) or start == 0:
        end = start + PIECE_CHARS
        if end < len(text):
            end = word_end(text, end)[0] or end
        yield start, text[start:end]
        start = end


def offsets_of(encoding: tokenizers.Encoding) -> NDArray[np.int64]:
    """Characters (start, end) of its T tokens, shape (T, 2)."""
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _never_back(offsets_T2: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offsets of normalised text step back where combining marks were put in order; these cover the same and do not."""
    starts_T = np.minimum.accumulate(offsets_T2[::-1, 0])[::-1]
    return np.stack([starts_T, np.maximum.accumulate(offsets_T2[:, 1])], axis=1)
