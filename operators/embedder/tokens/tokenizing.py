"""Texts to token ids, Arrow in and Arrow out: the recipe's templates around a text, cut to fit, and its end token.

Special tokens and the recipe's end token are put around the kept ids here, with numpy: transformers >= 5 ignores
`add_eos_token`, and a token that is part of the text is lost to truncation. Of a text that is too long only text is
lost: the prompt before it, what follows it, special and end tokens always survive. With `truncation_side: left` a
prompt that is tokenized together with the text is lost with the text's beginning, as in sentence-transformers.

Templates and text are tokenized as one string (`join: together`) or piece by piece (`join: apart`), as the recipe's
authors do it: at the seams the tokens differ.

Shapes: N rows, T tokens of all rows, K kept tokens of the texts alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import tokenizers
from numpy.typing import NDArray

from operators.embedder.recipe import layouts
from operators.embedder.recipe.keywords import Side
from operators.embedder.recipe.spec import EmbedderSpec, verified_folder
from operators.embedder.recipe.templates import Template, prepared
from operators.embedder.tokens import token_rows
from operators.embedder.tokens.backend import load_backend, special_ids
from operators.embedder.tokens.document_offsets import DocumentTokens, document_tokens, offsets_of, pieces
from operators.embedder.tokens.token_rows import Layout
from operators.embedder.tokens.truncating import Kept, kept_after, kept_before, kept_between
from operators.errors import InputError

ROWS_PER_CALL = 1024  # bounds the tokenizers library's working memory (65 bytes a token)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token ids of N texts, as the model reads them."""

    input_ids: (
        pa.ListArray
    )  # list<int32>; a row with several readings has operators.embedder.tokens.token_rows.SEPARATOR in it
    num_tokens: pa.Int32Array
    truncated: pa.BooleanArray
    lost_tokens: int  # cut off; exact where whole texts were tokenized, else estimated from the prefix


@dataclass(frozen=True, slots=True)
class Reading:
    """How one template is tokenized around a text."""

    template: Template
    apart: bool
    truncation_side: Side
    layout: Layout
    keep: int  # ids that fit: of the text alone where it is tokenized apart, else of it and the template
    max_text_tokens: int
    before: list[int]  # ids put before what is tokenized
    between: list[int]
    after: list[int]
    tail: list[int]  # the ids that every row ends with, whatever its text

    def kept(self, backend: tokenizers.Tokenizer, texts: pa.StringArray) -> Kept:
        """The ids of texts, and of the template where it is tokenized with them."""
        if self.truncation_side == "left":
            return kept_before(backend, texts, "" if self.apart else self.template.prefix, self.keep)
        if self.apart:
            return kept_after(backend, texts, "", self.keep)
        if not self.template.suffix:
            return kept_after(backend, texts, self.template.prefix, self.keep)
        return kept_between(backend, texts, self.template.prefix, self.template.suffix, self.keep)


class Tokenizer:
    """A recipe's tokenizer; a few MB, and safe to keep for the life of a worker."""

    def __init__(self, spec: EmbedderSpec) -> None:
        self._backend = load_backend(spec)
        self._recipe = recipe = spec.recipe
        if recipe.prepend is not None:
            self._backend.add_tokens([recipe.prepend.token])
        own = special_ids(self._backend)
        self._first, self._last = own if recipe.special_tokens == "own" else ([], [])
        self._own_last = len(self._last)
        self.end_id = self._backend.token_to_id(recipe.end_token) if recipe.end_token is not None else None
        """The id that every row ends with; None where the recipe promises none."""
        if recipe.end_token is not None and self.end_id is None:
            raise InputError(f"end_token {recipe.end_token!r} is not in the vocabulary of {recipe.checkpoint}")
        if self.end_id is not None and self._last[-1:] != [self.end_id]:
            self._last = [*self._last, self.end_id]
        self._check_end(verified_folder(spec, weights=False))
        self.readings = tuple(self._reading(template) for template in spec.templates)
        self.max_text_tokens = min(reading.max_text_tokens for reading in self.readings)
        """How many tokens of a text itself fit, beside special tokens and the prompt."""

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Where the text is in each reading of a row."""
        return tuple(reading.layout for reading in self.readings)

    @property
    def pools_all(self) -> bool:
        """Whether the recipe's vectors are made of all tokens of a row."""
        return not any(layout.leaves_out(self._recipe.pool_over) for layout in self.layouts)

    @property
    def max_id(self) -> int:
        """The largest id that can come out, but for that of a recipe's placeholder, which the model is made to know."""
        own = self._recipe.prepend.token if self._recipe.prepend is not None else None
        return max(i for token, i in self._backend.get_vocab(with_added_tokens=True).items() if token != own)

    @property
    def special_ids(self) -> list[int]:
        """The ids that stand for no text."""
        return [token for token, added in self._backend.get_added_tokens_decoder().items() if added.special]

    def ids(self, text: str) -> list[int]:
        """The ids of a piece of text by itself."""
        return self._ids(text)

    def decode(self, ids: list[int]) -> str:
        """The text that ids stand for, special tokens too."""
        return str(self._backend.decode(ids, skip_special_tokens=False))

    @property
    def pooled_id(self) -> int | None:
        """The id of the token that the recipe pools; None where it pools by place."""
        token = self._recipe.pooled_token
        return None if token is None else self.token_id(token)

    def token_id(self, token: str) -> int:
        """The id of a token; raises InputError where the vocabulary has none."""
        found = self._backend.token_to_id(token)
        if found is None:
            raise InputError(f"token {token!r} is not in the vocabulary of {self._recipe.checkpoint}")
        return int(found)

    def __call__(self, texts: pa.StringArray) -> Tokens:
        """Token ids of texts (no nulls), truncated to the recipe's max_tokens; an empty array gives empty columns."""
        if self._recipe.text_style != "as_is":
            style = self._recipe.text_style
            texts = pa.array([prepared(text, style) for text in texts.to_pylist()], texts.type)
        columns, lost_RN = [], np.zeros((len(self.readings), len(texts)), np.int64)
        for index, reading in enumerate(self.readings):
            column, lost_RN[index] = self._read(texts, reading)
            columns.append(column)
        num_tokens_N = np.sum([np.diff(column.offsets.to_numpy()) for column in columns], axis=0, dtype=np.int32)
        lost_N = lost_RN.max(axis=0)
        return Tokens(token_rows.join(columns), pa.array(num_tokens_N), pa.array(lost_N > 0), int(lost_N.sum()))

    def check_vocabulary(self, num_embeddings: int) -> None:
        """Raise InputError where there are ids that a model with this many token embeddings has none for."""
        if self.max_id >= num_embeddings:
            raise InputError(
                f"{self._recipe.checkpoint}: the tokenizer has ids up to {self.max_id}, "
                f"but the model has only {num_embeddings} token embeddings: they do not belong together"
            )

    def prompt_tokens(self, reading: Reading, text: str) -> int:
        """How many tokens of a reading of `text`, the tokenizer's own first ones left out, end in its prompt."""
        if reading.apart:
            return reading.layout.prefix
        prefix = reading.template.prefix
        end = len(prefix.rstrip(" "))
        offsets = self._backend.encode(prefix + text, add_special_tokens=False).offsets
        return sum(token_end <= end for _, token_end in offsets)

    def _check_end(self, folder: Path) -> None:
        """Refuse a recipe without the end token that its checkpoint was trained with."""
        if self.end_id is not None or self._last:
            return
        if layouts.asked_end_token(folder) is not None:
            raise InputError(
                f"set end_token: {layouts.asked_end_token(folder)!r} in the recipe: {folder}/tokenizer_config.json has "
                "add_eos_token, but the tokenizer puts no token after a text"
            )

    def _read(self, texts: pa.StringArray, reading: Reading) -> tuple[pa.ListArray, NDArray[np.int64]]:
        """The token ids of each text in one reading, and how many of its tokens were lost."""
        contents: list[list[int]] = []
        totals: list[int] = []
        for start in range(0, len(texts), ROWS_PER_CALL):
            ids, num_tokens = reading.kept(self._backend, texts.slice(start, ROWS_PER_CALL))
            contents += ids
            totals += num_tokens
        kept_N = np.fromiter(map(len, contents), np.int64, len(contents))
        lost_N = np.array(totals, dtype=np.int64) - kept_N
        if reading.layout.copies == 2:
            contents = [[*ids, *reading.between, *ids] for ids in contents]
            kept_N = 2 * kept_N + len(reading.between)
        ids_K = np.fromiter(itertools.chain.from_iterable(contents), np.int32, int(kept_N.sum()))
        return _with_specials(ids_K, kept_N, reading.before, reading.after), lost_N

    def _reading(self, template: Template) -> Reading:
        recipe = self._recipe
        apart = recipe.join == "apart"
        prefix, between, suffix = (
            self._ids(piece) for piece in (template.prefix, template.between or "", template.suffix)
        )
        content = recipe.max_tokens - len(self._first) - len(self._last)
        max_text_tokens = (content - len(prefix) - len(between) - len(suffix)) // template.copies
        if max_text_tokens < 1:
            raise InputError(
                f"max_tokens {recipe.max_tokens} leaves no room for text: the prompt takes "
                f"{len(prefix) + len(between) + len(suffix)} and special tokens {len(self._first) + len(self._last)}"
            )
        layout = Layout(
            len(self._first),
            len(prefix) if apart else self._prefix_tokens(template.prefix),
            len(suffix),
            len(self._last),
            len(between),
            template.copies,
        )
        return Reading(
            template,
            apart,
            recipe.truncation_side,
            layout,
            max_text_tokens if apart else content,
            max_text_tokens,
            [*self._first, *prefix] if apart else self._first,
            between,
            [*suffix, *self._last] if apart else self._last,
            [*(suffix if apart else self._sure_suffix(template)), *self._last],
        )

    def _prefix_tokens(self, prefix: str) -> int:
        """How many tokens of a prompt that is tokenized with the text are left out with it."""
        if self._recipe.count_prompt == "alone":  # as sentence-transformers: all but the last of its special tokens
            return len(self._ids(prefix)) + max(0, self._own_last - 1) if prefix else 0
        return len(self._ids(prefix.rstrip(" ")))  # a blank at its end becomes part of the text's first token

    def _sure_suffix(self, template: Template) -> list[int]:
        """The ids of the suffix that do not depend on the text, from the second character on."""
        encoding = self._backend.encode(f"{template.prefix}a{template.suffix}", add_special_tokens=False)
        seam = len(template.prefix) + 1
        return [token for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True) if start > seam]

    def _ids(self, piece: str) -> list[int]:
        return list(self._backend.encode(piece, add_special_tokens=False).ids)

    def alone(self, ids: NDArray[np.int32]) -> pa.ListArray:
        """One row for each id: itself between special tokens, without the prompt."""
        return _with_specials(ids, np.ones(len(ids), np.int64), self._first, self._last)

    def encode_with_offsets(self, text: str) -> NDArray[np.int64]:
        """Character offsets (start, end) of the text's own tokens, shape (T, 2): no specials, prompt or truncation.

        A long text is tokenized in pieces that begin where a word ended, so a token there may differ from the whole's.
        """
        return np.concatenate([offsets_of(self._encode(piece)) + start for start, piece in pieces(text)])

    def encode_document(self, text: str) -> DocumentTokens:
        """All tokens of a document, with what the first of the recipe's prompts puts around it.

        A long text is tokenized in pieces, as `encode_with_offsets` does it.
        """
        reading = self.readings[0]
        prompt = "" if reading.apart else reading.template.prefix
        return document_tokens(self._encode, text, prompt, reading.before, reading.after, self._recipe.max_tokens)

    def _encode(self, text: str) -> tokenizers.Encoding:
        return self._backend.encode(text, add_special_tokens=False)


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
