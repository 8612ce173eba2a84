"""Files of word vectors: the formats say the same, and what is wrong with a file is named with its place."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from operators.embedder.recipe.word_vectors import vector_files
from operators.embedder.recipe.word_vectors.vector_files import read_blocks
from operators.errors import InputError
from tests.checkpoints import WORDS
from tests.static_embedders import word_table, write_vectors

FORMATS = ("glove", "word2vec", "word2vec_binary")


def read(path: Path, form: Any, limit: int | None = None) -> tuple[list[str], NDArray[np.float32]]:
    blocks = list(read_blocks(path, form, limit))
    return [word for block in blocks for word in block.words], np.concatenate([block.values_BD for block in blocks])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("block_words", [3, 4096])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_format_gives_the_same_table(
    tmp_path: Path, form: str, block_words: int, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_files, "BLOCK_WORDS", block_words)
    path = write_vectors(tmp_path / "vectors", form)
    if suffix:
        packed = tmp_path / f"vectors{suffix}"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    words, values_VD = read(path, form)
    assert words == list(WORDS)
    np.testing.assert_array_equal(values_VD, word_table())
    some, few_VD = read(path, form, limit=5)
    assert some == list(WORDS[:5])
    np.testing.assert_array_equal(few_VD, word_table()[:5])


def test_a_limit_beyond_the_file_is_the_file(tmp_path: Path) -> None:
    for form in FORMATS:
        assert read(write_vectors(tmp_path / "vectors", form), form, limit=10_000)[0] == list(WORDS)


def test_words_with_blanks_blanks_at_line_ends_and_other_scripts(tmp_path: Path) -> None:
    path = tmp_path / "vectors"
    path.write_text("at name@domain.com 0.5 1 \r\n. . . -1e-3 2\n世界 3 4\n1995 5 6\n", encoding="utf-8")
    words, values_VD = read(path, "glove")
    assert words == ["at name@domain.com", ". . .", "世界", "1995"]
    np.testing.assert_allclose(values_VD, [[0.5, 1], [-1e-3, 2], [3, 4], [5, 6]])


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("glove", b"", "is empty"),
        ("glove", b"word\n", "line 1 is no word and its vector"),
        ("glove", b"3 2\na 1 2\n", "begins with b'3 2': set word_vectors.format to word2vec"),
        ("glove", b"a 1 2\nb 1\n", "line 2 has another number of dims than the 2 before"),
        ("glove", b"a 1 2\nb 1 2 3\n", "line 2 has another number of dims than the 2 before"),
        ("glove", b"a 1 2\n\nb 1 2\n", "line 2 has another number of dims than the 2 before"),
        ("glove", b"a 1 2\nb 1 x2\n", "lines 1 to 2: .*'x2'"),
        ("glove", b"a 1 2\nb nan 2\n", "the vector of the word 'b' has NaN or infinity"),
        ("glove", b"a 1 2\nb 1 1e99\n", "the vector of the word 'b' has NaN or infinity"),
        ("glove", b"a 1 2\n\xff\xfe 1 2\n", r"line 2: the word b'\\xff\\xfe' is not UTF-8"),
        ("word2vec", b"a 1 2\nb 1 2\n", "has no first line `words dims`.*set word_vectors.format to glove"),
        ("word2vec", b"2 3\na 1 2\nb 1 2\n", "line 2 has another number of dims than the 3 before"),
        ("word2vec", b"3 2\na 1 2\nb 1 2\n", "is cut off: its first line promises 3 words, and it has 2"),
        ("word2vec", b"1 2\na 1 2\nb 1 2\n", "has more than the 1 words"),
        ("word2vec_binary", b"", "has no first line"),
        ("word2vec_binary", b"2 1\na \0\0\0\0b \0\0", r"word 2 of 2 \('b'\): the file is cut off inside its vector"),
        ("word2vec_binary", b"2 1\na \0\0\0\0b", "word 2 of 2: the file is cut off there"),
        ("word2vec_binary", b"1 1\na \0\0\0\0b \0\0\0\0", "has more than the 1 words"),
        ("word2vec_binary", b"2 1\na \0\0\0\0" + b"x" * 5000, "word 2 of 2: no blank ends it"),
        ("word2vec_binary", b"1 1\na \0\0\xc0\x7f", "the vector of the word 'a' has NaN or infinity"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, form: Any, content: bytes, message: str) -> None:
    path = tmp_path / "vectors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(path, form)


def test_a_compressed_file_that_is_cut_off(tmp_path: Path) -> None:
    whole = gzip.compress(write_vectors(tmp_path / "vectors", "glove").read_bytes())
    path = tmp_path / "vectors.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is cut off or damaged"):
        read(path, "glove")
