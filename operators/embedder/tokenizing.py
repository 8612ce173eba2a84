"""Texts to token ids, Arrow in and Arrow out, at a cost that follows what is kept and not what is given.

A long text is cut to a prefix before it is tokenized, and the prefix's tokens are used only where they are sure to be
those of the whole text; otherwise a longer prefix is tried, up to the whole. They are sure up to the last word (in the
tokenizer's own sense) of a prefix that ends at the end of a word, less a margin of MARGIN_TOKENS: every tokenizer
works word by word, and looks at most a few characters over a word's end. Text without such ends is tokenized whole.

Special tokens and the recipe's end token are put around the kept ids here, with numpy: transformers >= 5 ignores
`add_eos_token`, and a token that is part of the text is lost to truncation.

Shapes: N rows, T tokens of all rows, K kept tokens of the texts alone.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from numpy.typing import NDArray

from operators.embedder.recipe import EmbedderSpec, verified_folder
from operators.errors import InputError

MARGIN_TOKENS = 32
CHARS_PER_TOKEN = 6  # of the first prefix; English prose has 4.5, so nearly all texts need no second one
GROWTH = 4  # of a prefix that was too short
SEARCH_CHARS = 256  # how far back from a prefix's end the end of a word is looked for
ROWS_PER_CALL = 1024  # bounds the tokenizers library's working memory (65 bytes a token)
PIECE_CHARS = 1 << 17  # a document is tokenized for chunking in pieces of this size, which bounds memory too

END_BEFORE_BLANK = re.compile(r"\S(?=\s)")
END_OF_WORD = re.compile(r"\w(?=\W)")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token ids of N texts, as the model reads them."""

    input_ids: pa.ListArray  # list<int32>
    num_tokens: pa.Int32Array
    truncated: pa.BooleanArray
    lost_tokens: int  # cut off; exact where whole texts were tokenized, else estimated from the prefix


class Tokenizer:
    """A recipe's tokenizer; a few MB, and safe to keep for the life of a worker."""

    def __init__(self, spec: EmbedderSpec) -> None:
        self._backend = _load_backend(spec)
        recipe = spec.recipe
        self._prompt = spec.prompt
        self._first, self._last = _special_ids(self._backend)
        self.end_id = self._backend.token_to_id(recipe.end_token) if recipe.end_token is not None else None
        """The id that every row ends with; None where the recipe promises none."""
        if recipe.end_token is not None and self.end_id is None:
            raise InputError(f"end_token {recipe.end_token!r} is not in the vocabulary of {recipe.checkpoint}")
        if self.end_id is not None and self._last[-1:] != [self.end_id]:
            self._last = [*self._last, self.end_id]
        self._max_content_tokens = recipe.max_tokens - len(self._first) - len(self._last)
        prompt_tokens = len(self._backend.encode(self._prompt, add_special_tokens=False))
        self.max_text_tokens = self._max_content_tokens - prompt_tokens
        """How many tokens of a text itself fit, beside special tokens and the prompt."""
        if self.max_text_tokens < 1:
            raise InputError(
                f"max_tokens {recipe.max_tokens} leaves no room for text: the prompt takes {prompt_tokens} and "
                f"special tokens {len(self._first) + len(self._last)}"
            )

    @property
    def max_id(self) -> int:
        """The largest id that can come out."""
        return max(self._backend.get_vocab(with_added_tokens=True).values())

    def __call__(self, texts: pa.StringArray) -> Tokens:
        """Token ids of texts (no nulls), truncated to the recipe's max_tokens; an empty array gives empty columns."""
        contents: list[list[int]] = []
        totals: list[int] = []
        for start in range(0, len(texts), ROWS_PER_CALL):
            ids, num_tokens = self._contents(texts.slice(start, ROWS_PER_CALL))
            contents += ids
            totals += num_tokens
        kept_N = np.fromiter(map(len, contents), np.int64, len(contents))
        total_N = np.array(totals, dtype=np.int64)
        ids_K = np.fromiter(itertools.chain.from_iterable(contents), np.int32, int(kept_N.sum()))
        input_ids = _with_specials(ids_K, kept_N, self._first, self._last)
        return Tokens(
            input_ids,
            pa.array(np.diff(input_ids.offsets.to_numpy()), pa.int32()),
            pa.array(total_N > kept_N),
            int((total_N - kept_N).sum()),
        )

    def encode_with_offsets(self, text: str) -> NDArray[np.int64]:
        """Character offsets (start, end) of the text's own tokens, shape (T, 2): no specials, prompt or truncation.

        A long text is tokenized in pieces that begin where a word ended, so a token there may differ from the whole's.
        """
        pieces: list[NDArray[np.int64]] = []
        start = 0
        while start < len(text):
            end = start + PIECE_CHARS
            if end < len(text):
                end = _word_end(text, end)[0] or end
            encoding = self._backend.encode(text[start:end], add_special_tokens=False)
            pieces.append(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + start)
            start = end
        return np.concatenate(pieces) if pieces else np.empty((0, 2), np.int64)

    def _contents(self, texts: pa.StringArray) -> tuple[list[list[int]], list[int]]:
        """The kept ids of each text with its prompt, and how many there were in all."""
        keep = self._max_content_tokens
        contents: list[list[int]] = [[]] * len(texts)
        totals = [0] * len(texts)
        num_bytes_N = pc.binary_length(texts).to_numpy(zero_copy_only=False)
        rows: list[int] | range = range(len(texts))
        limit = CHARS_PER_TOKEN * (keep + MARGIN_TOKENS)
        while rows:
            prefixes = pc.utf8_slice_codeunits(texts.take(pa.array(rows, pa.int64())), 0, limit + 1).to_pylist()
            whole = [(row, text) for row, text in zip(rows, prefixes, strict=True) if len(text) <= limit]
            encodings = self._backend.encode_batch_fast(
                [self._prompt + text for _, text in whole], add_special_tokens=False
            )
            for (row, _), encoding in zip(whole, encodings, strict=True):
                ids = encoding.ids
                contents[row], totals[row] = ids[:keep], len(ids)
            cut = [(row, text) for row, text in zip(rows, prefixes, strict=True) if len(text) > limit]
            rows = []
            for (row, text), found in zip(cut, self._prefix_tokens([text for _, text in cut]), strict=True):
                if found is None:
                    rows.append(row)
                    continue
                contents[row], num_tokens, num_chars = found
                prefix_bytes = len(text[:num_chars].encode())
                totals[row] = max(keep + 1, round(num_tokens * num_bytes_N[row] / prefix_bytes))
            limit *= GROWTH
        return contents, totals

    def _prefix_tokens(self, texts: list[str]) -> list[tuple[list[int], int, int] | None]:
        """For each cut text: kept ids, tokens and characters of what was tokenized; None where they are not sure."""
        ends = [_word_end(text, len(text) - 1) for text in texts]
        encodings = self._backend.encode_batch(
            [self._prompt + text[:end] for text, (end, _) in zip(texts, ends, strict=True)], add_special_tokens=False
        )
        keep = self._max_content_tokens
        return [
            (encoding.ids[:keep], len(encoding), end) if _sure_tokens(encoding, before_blank) >= keep else None
            for encoding, (end, before_blank) in zip(encodings, ends, strict=True)
        ]


def _word_end(text: str, limit: int) -> tuple[int, bool]:
    """The last end of a word at or before `limit`, and whether a blank follows it; (0, False) where none is near."""
    start = max(0, limit - SEARCH_CHARS)
    window = text[start : limit + 1]
    for pattern, before_blank in ((END_BEFORE_BLANK, True), (END_OF_WORD, False)):
        ends = [match.end() for match in pattern.finditer(window)]
        if ends:
            return start + ends[-1], before_blank
    return 0, False


def _sure_tokens(encoding: tokenizers.Encoding, before_blank: bool) -> int:
    """How many of a prefix's first tokens are those of the whole text."""
    num_tokens = len(encoding)
    last_word = encoding.token_to_word(num_tokens - 1) if num_tokens else None
    if last_word is None:
        return 0
    if last_word > 0:
        tokens = encoding.word_to_tokens(last_word)
        return tokens[0] - MARGIN_TOKENS if tokens else 0
    # One word: a tokenizer that splits nothing beforehand (Llama 2, Gemma). No piece of its vocabulary goes from a
    # letter over a blank, so it is sure up to a blank, and nothing is where there was none.
    return num_tokens - MARGIN_TOKENS if before_blank else 0


def _with_specials(
    ids_K: NDArray[np.int32], kept_N: NDArray[np.int64], first: list[int], last: list[int]
) -> pa.ListArray:
    """Put `first` before and `last` after each row of ids."""
    lengths_N = kept_N + len(first) + len(last)
    ends_N = np.cumsum(lengths_N)
    if len(ends_N) and ends_N[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{ends_N[-1]} tokens are too many for one table: make fragments smaller")
    starts_N = ends_N - lengths_N
    ids_T = np.empty(int(lengths_N.sum()), np.int32)
    row_starts_N = starts_N + len(first) - (np.cumsum(kept_N) - kept_N)
    ids_T[np.repeat(row_starts_N, kept_N) + np.arange(len(ids_K))] = ids_K
    for i, token in enumerate(first):
        ids_T[starts_N + i] = token
    for i, token in enumerate(last):
        ids_T[ends_N - len(last) + i] = token
    offsets = np.concatenate([[0], ends_N]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids_T))


def _special_ids(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer itself puts before and after a text."""
    encoding = backend.encode("a", add_special_tokens=True)
    own = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if not own:
        raise InputError("the tokenizer reads the letter 'a' as nothing but special tokens: it cannot be used")
    return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]


def _load_backend(spec: EmbedderSpec) -> tokenizers.Tokenizer:
    import transformers  # seconds, and only a worker needs it

    folder = verified_folder(spec, weights=False)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=spec.recipe.trust_remote_code
        )
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise InputError(f"cannot load the tokenizer of {folder}: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise InputError(f"{folder} has no fast tokenizer: it needs a tokenizer.json")
    backend.no_truncation()  # a checkpoint's own limits (MiniLM's file says 128) give way to the recipe's
    backend.no_padding()
    return backend
