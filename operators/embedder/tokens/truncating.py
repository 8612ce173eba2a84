"""Which tokens of a text are kept, at a cost that follows what is kept and not what is given.

A long text is cut to a prefix before it is tokenized, and the prefix's tokens are used only where they are sure to be
those of the whole text; otherwise a longer prefix is tried, up to the whole. They are sure up to the last word (in the
tokenizer's own sense) of a prefix that ends at the end of a word, less a margin of MARGIN_TOKENS: every tokenizer
works word by word, and looks at most a few characters over a word's end. Text without such ends is tokenized whole.

Where something follows the text (`kept_between`), a text that is too long is cut at the end of a token and the whole
is tokenized again, since what follows may change the last tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import tokenizers

MARGIN_TOKENS = 32
CHARS_PER_TOKEN = 6  # of the first prefix; English prose has 4.5, so nearly all texts need no second one
GROWTH = 4  # of a prefix that was too short
SEARCH_CHARS = 256  # how far back from a prefix's end the end of a word is looked for

END_BEFORE_BLANK = re.compile(r"\S(?=\s)")
END_OF_WORD = re.compile(r"\w(?=\W)")

Kept = tuple[list[list[int]], list[int]]  # the kept ids of each text, and how many there were in all
Whole = tuple[list[int], int]  # of one text: its kept ids, and how many there were
Cut = tuple[list[int], int, int]  # of a text's prefix: kept ids, and tokens and characters of what was tokenized


def kept_after(backend: tokenizers.Tokenizer, texts: pa.StringArray, prompt: str, keep: int) -> Kept:
    """At most `keep` ids of each text with a prompt before it."""

    def of_whole(whole: list[str]) -> list[Whole]:
        encodings = backend.encode_batch_fast([prompt + text for text in whole], add_special_tokens=False)
        return [(encoding.ids[:keep], len(encoding)) for encoding in encodings]

    def of_prefixes(cut: list[str]) -> list[Cut | None]:
        ends = [word_end(text, len(text) - 1) for text in cut]
        encodings = backend.encode_batch(
            [prompt + text[:end] for text, (end, _) in zip(cut, ends, strict=True)], add_special_tokens=False
        )
        return [
            (encoding.ids[:keep], len(encoding), end) if _sure_tokens(encoding, before_blank) >= keep else None
            for encoding, (end, before_blank) in zip(encodings, ends, strict=True)
        ]

    return _kept(texts, keep, of_whole, of_prefixes)


def kept_before(backend: tokenizers.Tokenizer, texts: pa.StringArray, prompt: str, keep: int) -> Kept:
    """At most `keep` ids of each text with a prompt before it, the last ones; every text is tokenized whole."""
    encodings = backend.encode_batch_fast([prompt + text for text in texts.to_pylist()], add_special_tokens=False)
    return [encoding.ids[-keep:] for encoding in encodings], [len(encoding) for encoding in encodings]


def kept_between(backend: tokenizers.Tokenizer, texts: pa.StringArray, prefix: str, suffix: str, keep: int) -> Kept:
    """At most `keep` ids of prefix + text + suffix as one string, of which the text alone is cut."""

    def of_whole(whole: list[str]) -> list[Whole]:
        encodings = backend.encode_batch_fast([prefix + text + suffix for text in whole], add_special_tokens=False)
        return [
            (
                encoding.ids if len(encoding) <= keep else _cut_between(backend, prefix, text, suffix, keep),
                len(encoding),
            )
            for text, encoding in zip(whole, encodings, strict=True)
        ]

    def of_prefix(text: str) -> Cut | None:
        end, before_blank = word_end(text, len(text) - 1)
        encoding = backend.encode(prefix + text[:end], add_special_tokens=False)
        if _sure_tokens(encoding, before_blank) <= keep:
            return None
        return _cut_between(backend, prefix, text[:end], suffix, keep), len(encoding), end

    return _kept(texts, keep, of_whole, lambda cut: [of_prefix(text) for text in cut])


def _kept(
    texts: pa.StringArray,
    keep: int,
    of_whole: Callable[[list[str]], list[Whole]],
    of_prefixes: Callable[[list[str]], list[Cut | None]],
) -> Kept:
    """Every text whole, or by the shortest prefix whose tokens are sure (`of_prefixes` gives None where they are not).

    How many ids a text cut to a prefix had in all is estimated by its bytes.
    """
    contents: list[list[int]] = [[]] * len(texts)
    totals = [0] * len(texts)
    num_bytes_N = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    rows: Sequence[int] = range(len(texts))
    limit = CHARS_PER_TOKEN * (keep + MARGIN_TOKENS)
    while rows:
        whole, cut = _prefixes(texts, rows, limit)
        for (row, _), found in zip(whole, of_whole([text for _, text in whole]), strict=True):
            contents[row], totals[row] = found
        rows = []
        for (row, text), sure in zip(cut, of_prefixes([text for _, text in cut]), strict=True):
            if sure is None:
                rows.append(row)
                continue
            contents[row], num_tokens, num_chars = sure
            prefix_bytes = len(text[:num_chars].encode())
            totals[row] = max(keep + 1, round(num_tokens * num_bytes_N[row] / prefix_bytes))
        limit *= GROWTH
    return contents, totals


def _cut_between(backend: tokenizers.Tokenizer, prefix: str, text: str, suffix: str, keep: int) -> list[int]:
    """The ids of the longest beginning of a text, ending with a token of it, that fits with prefix and suffix."""
    ends = [end for _, end in backend.encode(prefix + text, add_special_tokens=False).offsets]
    # Tokens of prefix and text; how many the suffix takes is found by trying, since it may merge with the text's last
    budget = min(keep, len(ends))
    while True:
        end = ends[budget - 1] if budget > 0 else 0
        ids = backend.encode(prefix + text[: max(0, end - len(prefix))] + suffix, add_special_tokens=False).ids
        if len(ids) <= keep or end <= len(prefix):
            return list(ids[:keep])
        budget -= len(ids) - keep


def _prefixes(
    texts: pa.StringArray, rows: Sequence[int], limit: int
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Rows with their whole text, of at most `limit` characters, and rows with that much of a longer one and a bit."""
    prefixes = pc.utf8_slice_codeunits(texts.take(pa.array(rows, pa.int64())), 0, limit + 1).to_pylist()
    whole = [(row, text) for row, text in zip(rows, prefixes, strict=True) if len(text) <= limit]
    cut = [(row, text) for row, text in zip(rows, prefixes, strict=True) if len(text) > limit]
    return whole, cut


def word_end(text: str, limit: int) -> tuple[int, bool]:
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
