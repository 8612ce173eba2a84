"""Word2vec and GloVe files, read as a stream of blocks of words and vectors, so that memory does not follow the file.

    glove              word 0.1 0.2 ...      one word a line, most frequent first
    word2vec           the same below a first line `words dims`
    word2vec_binary    that first line, then each word, a blank, and its dims as float32, little-endian

A file that is not exactly that is an InputError with the place: a vector that was read wrong fails nowhere else.
Shapes: B words of a block, D dims.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.errors import InputError

BLOCK_WORDS = 4096
MAX_WORD_BYTES = 4096  # of a binary file; without a bound a wrong file is searched to its end for a blank

Format = Literal["glove", "word2vec", "word2vec_binary"]


@dataclass(frozen=True, slots=True)
class Block:
    """Words that follow one another in a file."""

    words: list[str]
    values_BD: NDArray[np.float32]


def read_blocks(path: Path, form: Format, limit: int | None = None) -> Iterator[Block]:
    """The words of a file in its order, all finite; InputError names the line or word that is wrong."""
    opener = gzip.open if path.suffix == ".gz" else open
    with cast(BinaryIO, opener(path, "rb")) as stream:
        try:
            if form == "glove":
                yield from _text_blocks(stream, path, 0, None, None, limit)
                return
            num_words, dim = _header(stream, path)
            if form == "word2vec":
                yield from _text_blocks(stream, path, 1, dim, num_words, limit)
            else:
                yield from _binary_blocks(stream, path, dim, num_words, limit)
        except (EOFError, gzip.BadGzipFile) as error:
            raise InputError(f"{path} is cut off or damaged: {error}") from error


def _header(stream: BinaryIO, path: Path) -> tuple[int, int]:
    line = stream.readline(64)
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or not all(int(part) for part in parts):
        raise InputError(
            f"{path} has no first line `words dims`, but {line[:40]!r}: set word_vectors.format to glove for text "
            "without one"
        )
    return int(parts[0]), int(parts[1])


def _text_blocks(
    stream: BinaryIO, path: Path, lines_before: int, dim: int | None, num_words: int | None, limit: int | None
) -> Iterator[Block]:
    wanted = limit if num_words is None else min(num_words, limit or num_words)
    number = 0
    while lines := list(itertools.islice(stream, BLOCK_WORDS if wanted is None else min(BLOCK_WORDS, wanted - number))):
        first_line = lines_before + number + 1
        if number == 0 and dim is None:
            dim = _dim_of_first(lines[0], path)
        assert dim is not None, "known from the header or the first line"
        yield _text_block(lines, path, first_line, dim)
        number += len(lines)
    if wanted is None and number == 0:
        raise InputError(f"{path} is empty")
    if wanted is not None and number < wanted and num_words is not None:
        raise InputError(f"{path} is cut off: its first line promises {num_words} words, and it has {number}")
    if limit is None and num_words is not None and stream.readline().strip():
        raise InputError(f"{path} has more than the {num_words} words that its first line promises")


def _dim_of_first(line: bytes, path: Path) -> int:
    parts = line.split()
    if len(parts) == 2 and all(part.isdigit() for part in parts):
        raise InputError(f"{path} begins with {line.strip()!r}: set word_vectors.format to word2vec")
    numbers = sum(1 for _ in itertools.takewhile(_is_number, reversed(parts[1:])))  # a word may have blanks inside
    if not numbers:
        raise InputError(f"{path} line 1 is no word and its vector: {line[:40]!r}")
    return numbers


def _text_block(lines: list[bytes], path: Path, first_line: int, dim: int) -> Block:
    words, vectors = [], []
    for number, line in enumerate(lines, first_line):
        # from the right, since some words of GloVe 840B have blanks inside
        parts = line.rstrip(b" \r\n").rsplit(b" ", dim)
        if len(parts) != dim + 1 or not parts[0] or _ends_in_number(parts[0]):
            raise InputError(f"{path} line {number} has another number of dims than the {dim} before: {line[:60]!r}...")
        words.append(_decoded(parts[0], f"{path} line {number}"))
        vectors.extend(parts[1:])
    try:
        values_BD = pc.cast(pa.array(vectors, pa.binary()).cast(pa.string()), pa.float32()).to_numpy()
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} lines {first_line} to {first_line + len(lines) - 1}: {error}") from error
    values_BD = values_BD.reshape(len(lines), dim)
    _check_finite(values_BD, words, path)
    return Block(words, values_BD)


def _ends_in_number(word: bytes) -> bool:
    """Whether a word with blanks ends in a number: then the line has too many numbers, and the word is none."""
    _, blank, last = word.rpartition(b" ")
    return bool(blank) and _is_number(last)


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _binary_blocks(stream: BinaryIO, path: Path, dim: int, num_words: int, limit: int | None) -> Iterator[Block]:
    wanted = min(num_words, limit or num_words)
    words: list[str] = []
    vectors: list[bytes] = []
    for number in range(1, wanted + 1):
        where = f"{path} word {number} of {num_words}"
        words.append(_decoded(_binary_word(stream, where), where))
        vector = stream.read(4 * dim)
        if len(vector) < 4 * dim:
            raise InputError(f"{where} ({words[-1]!r}): the file is cut off inside its vector")
        vectors.append(vector)
        if len(words) == BLOCK_WORDS or number == wanted:
            values_BD = np.frombuffer(b"".join(vectors), "<f4").reshape(len(words), dim)
            _check_finite(values_BD, words, path)
            yield Block(words, values_BD)
            words, vectors = [], []
    if limit is None and stream.read(2).strip(b"\n"):
        raise InputError(f"{path} has more than the {num_words} words that its first line promises")


def _binary_word(stream: BinaryIO, where: str) -> bytes:
    word = bytearray()
    while (byte := stream.read(1)) != b" ":
        if not byte:
            raise InputError(f"{where}: the file is cut off there")
        if len(word) == MAX_WORD_BYTES:
            raise InputError(f"{where}: no blank ends it: the file is no word2vec binary, or its dims are wrong")
        word += byte
    return bytes(word).lstrip(b"\n")  # word2vec.c ends each vector with a new line, other writers do not


def _decoded(word: bytes, where: str) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError:
        raise InputError(f"{where}: the word {word[:40]!r} is not UTF-8") from None


def _check_finite(values_BD: NDArray[np.float32], words: list[str], path: Path) -> None:
    finite_B = np.isfinite(values_BD).all(axis=1)
    if not finite_B.all():
        raise InputError(f"{path}: the vector of the word {words[int(np.argmin(finite_B))]!r} has NaN or infinity")
