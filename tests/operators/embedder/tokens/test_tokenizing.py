"""Tokenizing: prefixes give exactly the ids of whole texts, for every family of tokenizers; specials, prompts, ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from operators.embedder.recipe import fingerprint
from operators.embedder.recipe.recipe import Recipe
from operators.embedder.recipe.spec import EmbedderSpec
from operators.embedder.recipe.templates import Template
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from tests import checkpoints

MAX_TOKENS = 16
FAMILIES = ("wordpiece", "byte_level", "unigram", "unsplit_bpe")


def unigram_tokenizer() -> tokenizers.Tokenizer:
    """As XLM-R's and T5's: Unigram over words that begin with a metaspace, NFKC, runs of blanks made one."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([checkpoints.TEXT] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def unsplit_bpe_tokenizer() -> tokenizers.Tokenizer:
    """As Llama 2's and Gemma's: BPE over the whole text at once, blanks replaced by a metaspace, byte fallback."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator([checkpoints.TEXT], trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


BUILDERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "wordpiece": checkpoints.wordpiece_tokenizer,
    "byte_level": checkpoints.byte_level_tokenizer,
    "unigram": unigram_tokenizer,
    "unsplit_bpe": unsplit_bpe_tokenizer,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    for family in FAMILIES:
        checkpoints.save_tokenizer(root / family, BUILDERS[family](), {}, 512)
    return {family: root / family for family in FAMILIES}


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, tuple[Tokenizer, Any]]:
    """Ours, and transformers' own to compare with, per family."""
    return {
        family: (Tokenizer(spec_of(folder)), transformers.AutoTokenizer.from_pretrained(folder))
        for family, folder in folders.items()
    }


def spec_of(folder: Path, *, prompt: str = "", **fields: Any) -> EmbedderSpec:
    given_fields = {"pooling": "mean", "normalize": True, "max_tokens": MAX_TOKENS, **fields}
    recipe = Recipe(checkpoint=str(folder), **given_fields)
    return EmbedderSpec("tiny", recipe, (Template.parse(prompt),), 32, "", fingerprint.tokenizer_digest(folder), "")


def expected_ids(reference: Any, text: str, max_tokens: int = MAX_TOKENS) -> list[int]:
    ids = reference(text, truncation=True, max_length=max_tokens, return_attention_mask=False)["input_ids"]
    return [int(token) for token in ids]


class CountingBackend:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self.chars = 0

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        self.chars += sum(map(len, texts))
        return self._backend.encode_batch(texts, **options)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.chars += sum(map(len, texts))
        return self._backend.encode_batch_fast(texts, **options)


WORD = st.sampled_from(checkpoints.WORDS)
RUN = st.tuples(
    st.sampled_from(
        [" ", "\n", "\t", "  \n", "a", "é", "7", "!", "-", '"\n', "世", "。", "👩‍👩‍👧", "e\u0301", "ᄒ", "\u3000", "नि"]
    ),
    st.integers(1, 700),
).map(lambda run: run[0] * run[1])
PROSE = st.lists(WORD, min_size=1, max_size=120).map(" ".join)
NOISE = st.text(max_size=80)
TEXT = st.lists(st.one_of(PROSE, RUN, NOISE), min_size=1, max_size=8).map("".join)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_prefixes_give_the_ids_of_whole_texts(pairs: dict[str, tuple[Tokenizer, Any]], family: str, text: str) -> None:
    ours, reference = pairs[family]
    tokens = ours(pa.array([text]))
    assert tokens.input_ids[0].as_py() == expected_ids(reference, text)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a" * 200_000, id="one word"),
        pytest.param("7" * 50_000, id="digits"),
        pytest.param("a" + " " * 50_000 + "b", id="blanks"),
        pytest.param("\n" * 50_000, id="newlines"),
        pytest.param("世界和平，" * 20_000, id="CJK with commas"),
        pytest.param("世界和平" * 20_000, id="CJK without"),
        pytest.param("👩‍👩‍👧" * 5_000, id="emoji"),
        pytest.param("e\u0301" * 20_000, id="combining"),
        pytest.param("!" * 20_000 + "\n", id="punctuation"),
        pytest.param("\x00\x01 a\x00" * 5_000, id="control characters"),
    ],
)
def test_texts_that_are_hard_to_cut(pairs: dict[str, tuple[Tokenizer, Any]], family: str, text: str) -> None:
    ours, reference = pairs[family]
    tokens = ours(pa.array([text, "the end"]))
    assert tokens.input_ids.to_pylist() == [expected_ids(reference, text), expected_ids(reference, "the end")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_document_costs_no_more_than_what_is_kept(folders: dict[str, Path], family: str) -> None:
    text = checkpoints.TEXT * 2000  # a megabyte
    tokenizer = Tokenizer(spec_of(folders[family]))
    whole = len(tokenizer.encode_with_offsets(text))
    counting = CountingBackend(tokenizer._backend)
    tokenizer._backend = counting  # type: ignore[assignment]  # the two methods that are used
    tokens = tokenizer(pa.array([text]))
    assert counting.chars < 0.01 * len(text)
    assert tokens.truncated.to_pylist() == [True]
    assert tokens.lost_tokens == pytest.approx(whole, rel=0.2)


def test_real_minilm_ids() -> None:
    folder = checkpoints.minilm_folder()
    ours = Tokenizer(spec_of(folder, max_tokens=256))
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [checkpoints.TEXT * times for times in (1, 2, 3, 50)] + [
        "Ünïcödé 世界 👩‍👩‍👧 don't!\n" * 300,
        "x",
        "[SEP] [MASK]",
    ]
    tokens = ours(pa.array(texts))
    assert tokens.input_ids.to_pylist() == [expected_ids(reference, text, 256) for text in texts]


def test_columns_agree(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(spec_of(folders["wordpiece"]))
    texts = ["the world", "the " * 14, "the " * 15, "the " * 40, ""]
    tokens = tokenizer(pa.array(texts))
    assert tokens.input_ids.type == pa.list_(pa.int32())
    assert tokens.num_tokens.to_pylist() == [4, 16, 16, 16, 2]
    assert tokens.truncated.to_pylist() == [False, False, True, True, False]
    assert tokens.lost_tokens == 1 + 26


def test_no_texts(folders: dict[str, Path]) -> None:
    tokens = Tokenizer(spec_of(folders["wordpiece"]))(pa.array([], pa.string()))
    assert (len(tokens.input_ids), len(tokens.num_tokens), len(tokens.truncated), tokens.lost_tokens) == (0, 0, 0, 0)


def test_more_rows_than_one_call_of_the_library_takes(pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    ours, reference = pairs["byte_level"]
    texts = [f"row {i} " + "the world " * (i % 90) for i in range(2500)]
    assert ours(pa.array(texts)).input_ids.to_pylist() == [expected_ids(reference, text) for text in texts]


def test_a_slice_of_a_column_and_large_strings(pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    ours, reference = pairs["wordpiece"]
    texts = ["one", "two", "three", "four " * 200]
    expected = [expected_ids(reference, text) for text in texts[2:]]
    assert ours(pa.array(texts).slice(2)).input_ids.to_pylist() == expected
    assert ours(pa.array(texts, pa.large_string()).slice(2)).input_ids.to_pylist() == expected


def test_end_token_survives_truncation_and_bos_stays(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(spec_of(folders["byte_level"], end_token="<|endoftext|>"))
    rows = tokenizer(pa.array(["the", "the world " * 100])).input_ids.to_pylist()
    assert [row[0] for row in rows] == [1, 1]
    assert [row[-1] for row in rows] == [0, 0]
    assert [row.count(0) for row in rows] == [1, 1]
    assert len(rows[1]) == MAX_TOKENS


def test_end_token_that_the_tokenizer_has_already_is_not_doubled(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(spec_of(folders["wordpiece"], end_token="[SEP]"))
    assert tokenizer(pa.array(["the"])).input_ids.to_pylist() == [[2, tokenizer._backend.token_to_id("the"), 3]]


def test_prompt_is_tokenized_with_the_text(folders: dict[str, Path]) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(folders["byte_level"])
    tokenizer = Tokenizer(spec_of(folders["byte_level"], prompt="one of the"))
    texts = ["m all", "se " * 500]
    assert tokenizer(pa.array(texts)).input_ids.to_pylist() == [
        expected_ids(reference, "one of the" + text) for text in texts
    ]
    prompt_tokens = len(reference("one of the", add_special_tokens=False)["input_ids"])
    assert tokenizer.max_text_tokens == MAX_TOKENS - 1 - prompt_tokens


SUFFIX = '" means in one word:"'


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
@example(text=" " * 321 + "a" * 101)  # WordPiece reads a word of over 100 characters as one unknown, a part of it not
@example(text="0" * 5 + " " * 316 + "a" * 98 + "the the the")
def test_only_the_text_is_cut_from_a_template(folders: dict[str, Path], family: str, text: str) -> None:
    tokenizer = _wrapped(folders[family])
    reference = tokenizer._backend
    keep = 40 - len(tokenizer._first) - len(tokenizer._last)
    whole = reference.encode(f'the "{text}{SUFFIX}', add_special_tokens=False).ids
    tokens = tokenizer(pa.array([text]))
    row = tokens.input_ids[0].as_py()
    found = row[len(tokenizer._first) : len(row) - len(tokenizer._last)]
    assert tokens.truncated.to_pylist() == [len(whole) > keep]
    if len(whole) <= keep:
        assert found == whole
        return
    ends = [end for _, end in reference.encode(f'the "{text}', add_special_tokens=False).offsets[: keep + 1]]
    prefixes = (f'the "{text[: max(0, end - 5)]}{SUFFIX}' for end in ends)
    assert len(found) <= keep
    assert any(reference.encode(prefix, add_special_tokens=False).ids == found for prefix in prefixes)


_wrapped_tokenizers: dict[Path, Tokenizer] = {}


def _wrapped(folder: Path) -> Tokenizer:
    if folder not in _wrapped_tokenizers:
        _wrapped_tokenizers[folder] = Tokenizer(spec_of(folder, prompt=f'the "{{text}}{SUFFIX}', max_tokens=40))
    return _wrapped_tokenizers[folder]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_in_a_template_fills_what_there_is(folders: dict[str, Path], family: str) -> None:
    tokenizer = _wrapped(folders[family])
    tokens = tokenizer(pa.array([checkpoints.TEXT * 2000, "the day"]))
    assert 38 <= tokens.num_tokens[0].as_py() <= 40
    tail = tokenizer.readings[0].tail
    assert len(tail) > 3
    assert all(row[-len(tail) :] == tail for row in tokens.input_ids.to_pylist())
    whole = len(tokenizer.encode_with_offsets(checkpoints.TEXT * 2000))
    assert tokens.lost_tokens == pytest.approx(whole, rel=0.2)


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_are_tokenized_apart(folders: dict[str, Path], family: str) -> None:
    prompt = "one {text} of {text}!"
    tokenizer = Tokenizer(spec_of(folders[family], prompt=prompt, join="apart", max_tokens=30))
    texts = ["the world", "the world " * 100]
    reference = tokenizer._backend

    def ids(piece: str) -> list[int]:
        return list(reference.encode(piece, add_special_tokens=False).ids)

    room = (30 - len(tokenizer._first) - len(tokenizer._last) - sum(map(len, map(ids, ("one ", " of ", "!"))))) // 2
    assert tokenizer.max_text_tokens == room
    rows = []
    for text in texts:
        copy = ids(text)[:room]
        content = [*ids("one "), *copy, *ids(" of "), *copy, *ids("!")]
        rows.append([*tokenizer._first, *content, *tokenizer._last])
    tokens = tokenizer(pa.array(texts))
    assert tokens.input_ids.to_pylist() == rows
    assert tokens.truncated.to_pylist() == [False, True]


def test_several_readings_share_a_row(folders: dict[str, Path]) -> None:
    spec = spec_of(folders["wordpiece"])
    prompts = ("", "the ", 'a "{text}" day')
    several = Tokenizer(dataclasses.replace(spec, templates=tuple(map(Template.parse, prompts))))
    single = [Tokenizer(dataclasses.replace(spec, templates=(Template.parse(prompt),))) for prompt in prompts]
    texts = pa.array(["world", "the world " * 100, ""])
    alone = [tokenizer(texts) for tokenizer in single]
    tokens = several(texts)
    expected = [[*a, -1, *b, -1, *c] for a, b, c in zip(*(found.input_ids.to_pylist() for found in alone), strict=True)]
    assert tokens.input_ids.to_pylist() == expected
    assert tokens.num_tokens.to_pylist() == [len(row) - 2 for row in expected]
    assert tokens.lost_tokens == max(found.lost_tokens for found in alone)
    assert several.max_text_tokens == min(tokenizer.max_text_tokens for tokenizer in single)


def test_texts_are_put_as_prompts_expect_them(folders: dict[str, Path]) -> None:
    spec = spec_of(folders["wordpiece"])
    styled = Tokenizer(spec_of(folders["wordpiece"], text_style="sentence"))
    found = styled(pa.array(["the day", 'a "way"?'], pa.large_string()))
    assert found.input_ids.equals(Tokenizer(spec)(pa.array(["the day.", "a 'way'."])).input_ids)


def test_refusals(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"end_token '<eos>' is not in the vocabulary"):
        Tokenizer(spec_of(folders["wordpiece"], end_token="<eos>"))
    with pytest.raises(InputError, match="leaves no room for text: the prompt takes 14"):
        Tokenizer(spec_of(folders["wordpiece"], prompt="the " * 14))


def test_offsets_are_of_the_text_itself(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer(spec_of(folders["wordpiece"], prompt="the "))
    text = "the wörlds 世 is"
    offsets_T2 = tokenizer.encode_with_offsets(text)
    assert [text[start:end] for start, end in offsets_T2] == ["the", "wörld", "s", "世", "is"]
    assert tokenizer.encode_with_offsets("").shape == (0, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_of_a_document_of_many_pieces(
    folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(spec_of(folders[family]))
    text = (checkpoints.TEXT + "\n") * 20
    whole_T2 = tokenizer.encode_with_offsets(text)
    monkeypatch.setattr("operators.embedder.tokens.document_offsets.PIECE_CHARS", 1000)
    pieces_T2 = tokenizer.encode_with_offsets(text)
    covered = sorted({tuple(span) for span in pieces_T2.tolist()} & {tuple(span) for span in whole_T2.tolist()})
    assert len(covered) > 0.99 * len(whole_T2)
    assert (pieces_T2[1:, 0] >= pieces_T2[:-1, 0]).all()
    assert pieces_T2[-1, 1] <= len(text)
