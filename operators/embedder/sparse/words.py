"""Which ids the words of a text have, read back from its tokens, for PromptReps (arXiv 2404.18424).

The rows that reach the model hold ids alone. They are decoded, the recipe's prompt is cut off, and every word of what
is left, in lower case and no stop word, is tokenized by itself, as the authors' code does it with NLTK's words. That
decoding gives the text back is checked when the model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from operators.embedder.tokens.batching import Batch
from operators.embedder.tokens.known_texts import TEXTS, texts
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError

WORD = re.compile(r"\w+(?:-\w+)*")
KNOWN_WORDS = 1 << 16  # whose ids are remembered


class WordsInText:
    """Batches of token ids -> for each row the ids of its text's words."""

    def __init__(self, tokenizer: Tokenizer, stop_words: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._template = tokenizer.readings[0].template
        self._layout = tokenizer.layouts[0]
        self._stop_words = frozenset(stop_words)
        self._ids_of = lru_cache(KNOWN_WORDS)(tokenizer.ids)
        for text, ids in zip(TEXTS, tokenizer(texts()).input_ids.to_pylist(), strict=True):
            found = self._text(ids)
            if not found or not text.lower().startswith(found.lower()):
                raise InputError(
                    f"sparse.head: next_word needs a tokenizer whose tokens give the text back: {text[:30]!r} in its "
                    f"prompt is read back as {found[:30]!r}"
                )

    def __call__(self, batch: Batch) -> list[NDArray[np.int64]]:
        """Ascending ids, none twice; empty where a text has nothing but stop words."""
        return [self._ids(row.tolist()) for row in np.split(batch.ids_T, np.cumsum(batch.lengths_B)[:-1])]

    def _ids(self, row: list[int]) -> NDArray[np.int64]:
        words = {word for word in WORD.findall(self._text(row).lower()) if word not in self._stop_words}
        return np.array(sorted({token for word in words for token in self._ids_of(word)}), np.int64)

    def _text(self, row: list[int]) -> str:
        decoded = self._tokenizer.decode(row[self._layout.first : len(row) - self._layout.last])
        return decoded.removeprefix(self._template.prefix).removesuffix(self._template.suffix)
