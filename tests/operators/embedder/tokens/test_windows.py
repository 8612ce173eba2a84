"""Late chunking against plain transformers: windows of a document forward one by one, spans of states averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from operators.corpus.chunking import chunk_rows
from operators.corpus.chunking_config import Chunking, check_fits
from operators.embedder.engine import Embedder
from operators.embedder.factory import load_chunk_embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.tokens.batching import Batch
from operators.embedder.tokens.document_offsets import PIECE_CHARS
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.tokens.windows import Group, Windows, check_late, group_chunks, token_spans, tokens_read
from operators.errors import InputError
from operators.pipeline.late_chunking import late_chunk_columns
from tests import checkpoints
from tests.operators.embedder.references import Record, compare

RECIPES = Path(__file__).parents[4] / "configs" / "models"
CHUNKING = Chunking(tokens=10, overlap=2, late=True, window_overlap=12)
ROOM = 62  # tokens of text of a tiny BERT's window: 64 less [CLS] and [SEP]


def spec_of(folder: Path, **recipe: Any) -> EmbedderSpec:
    defaults = {"checkpoint": str(folder), "pooling": "mean", "normalize": False, "max_tokens": ROOM + 2}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**defaults, **recipe}))
    return embedder_spec(str(path), EmbedderConfig(device="cpu"), RECIPES)


def text_of(num_words: int, start: int = 0) -> str:
    """A text of so many words, each one token, in sentences of seven."""
    words = [checkpoints.WORDS[(start + 5 * i) % len(checkpoints.WORDS)] for i in range(num_words)]
    return " ".join(word + ("." if i % 7 == 6 else "") for i, word in enumerate(words))


def chunked(texts: list[str], chunking: Chunking, tokenizer: Tokenizer) -> tuple[pa.Table, pa.Table]:
    """The chunks of documents and their columns at the tokenizing step."""
    num = len(texts)
    rows = pa.table(
        {
            "doc_id": [f"d{i}" for i in range(num)],
            "source_path": ["p"] * num,
            "source_row": range(num),
            "text": pa.array(texts, pa.string()),
        }
    )
    chunks = chunk_rows(rows, chunking, tokenizer).combine_chunks()
    columns, _ = late_chunk_columns(rows, chunks, chunking, tokenizer)
    return chunks, pa.table(columns)


def late_vectors(spec: EmbedderSpec, texts: list[str], chunking: Chunking, **options: Any) -> NDArray[np.float32]:
    _, tokens = chunked(texts, chunking, Tokenizer(spec))
    vectors = Embedder(spec, device="cpu", **options).of_chunks(Windows.of_table(tokens))
    assert vectors.finite_N.all()
    return vectors.values_ND


def plain_loop(
    folder: Path, texts: list[str], chunks: pa.Table, overlap: int, prompt: str = "", room: int = ROOM
) -> NDArray[np.float32]:
    """The same with transformers alone: a window is the chunks that fit with half the overlap on both sides."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    empty = tokenizer("")["input_ids"]
    first, last = empty[:1], empty[1:]
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    vectors = []
    for number, text in enumerate(texts):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        own = chunks.filter(pc.equal(chunks["doc_id"], f"d{number}"))
        spans = []
        for start, end in zip(own["char_start"].to_pylist(), own["char_end"].to_pylist(), strict=True):
            inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
            spans.append((inside[0], inside[-1] + 1))
        done = 0
        while done < len(spans):
            if len(ids) <= room:
                stop, low, high = len(spans), 0, len(ids)
            else:
                low = max(0, spans[done][0] - overlap // 2)
                stop = done + 1
                while stop < len(spans) and min(len(ids), spans[stop][1] + overlap // 2) - low <= room:
                    stop += 1
                high = min(len(ids), spans[stop - 1][1] + overlap // 2)
            window = [*first, *prompt_ids, *ids[low:high], *last]
            with torch.inference_mode():
                states = model(input_ids=torch.tensor([window])).last_hidden_state[0].numpy()
            shift = len(first) + len(prompt_ids) - low
            vectors += [states[a + shift : b + shift].mean(axis=0) for a, b in spans[done:stop]]
            done = stop
    return np.stack(vectors)


# shorter than a window, one chunk, exactly a window, one token more, several windows
TEXTS = [text_of(n, n) for n in (30, 3, 54, 55, 200, 1, 120, 10, 333)]


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_late_vectors_are_those_of_a_plain_loop(tmp_path: Path, batch_tokens: int, record_property: Record) -> None:
    spec = spec_of(checkpoints.tiny_bert(tmp_path))
    tokenizer = Tokenizer(spec)
    assert [len(tokenizer.encode_with_offsets(text)) for text in TEXTS[2:4]] == [ROOM - 1, ROOM]
    chunks, tokens = chunked(TEXTS, CHUNKING, tokenizer)
    expected_CD = plain_loop(tmp_path, TEXTS, chunks, overlap=12)
    assert len(expected_CD) == chunks.num_rows == tokens.num_rows
    assert len(Windows.of_table(tokens)) > len(TEXTS) + 5
    values_CD = late_vectors(spec, TEXTS, CHUNKING, batch_tokens=batch_tokens)
    compare(record_property, "late chunking", "transformers, window by window", values_CD, expected_CD)


def test_order_of_documents_changes_nothing(tmp_path: Path) -> None:
    spec = spec_of(checkpoints.tiny_bert(tmp_path))
    forward_CD = late_vectors(spec, TEXTS, CHUNKING, batch_tokens=150)
    ends = np.cumsum([len(late_vectors(spec, [text], CHUNKING)) for text in TEXTS])[:-1]
    backward_CD = late_vectors(spec, TEXTS[::-1], CHUNKING, batch_tokens=150)
    lengths = [len(part) for part in np.split(forward_CD, ends)]
    parts = np.split(backward_CD, np.cumsum(lengths[::-1])[:-1])
    np.testing.assert_allclose(np.concatenate(parts[::-1]), forward_CD, atol=1e-5)


@pytest.mark.parametrize("layers", [[-1], [1, -1]])
def test_prompts_go_before_every_window_and_are_not_pooled(tmp_path: Path, layers: list[int]) -> None:
    """With layers averaged the padded forward is used, without them the packed one."""
    prompt = "one question: "
    spec = spec_of(checkpoints.tiny_bert(tmp_path), prompts={"document": prompt}, layers=layers)
    tokenizer = Tokenizer(spec)
    chunks, _ = chunked(TEXTS, CHUNKING, tokenizer)
    values_CD = late_vectors(spec, TEXTS, CHUNKING)
    if layers == [-1]:
        room = ROOM - len(tokenizer.encode_with_offsets(prompt))
        expected_CD = plain_loop(tmp_path, TEXTS, chunks, 12, prompt, room)
        np.testing.assert_allclose(values_CD, expected_CD, atol=1e-5)
    else:
        without_CD = late_vectors(spec_of(tmp_path, layers=layers), TEXTS, CHUNKING)
        assert np.abs(values_CD - without_CD).max() > 1e-3


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
@pytest.mark.parametrize(("padding", "packing"), [("left", False), ("right", False), ("right", True)])
def test_decoders_in_batches_are_each_window_alone(tmp_path: Path, kind: Any, padding: str, packing: bool) -> None:
    checkpoints.tiny_decoder(tmp_path, kind=kind)
    spec = spec_of(tmp_path, padding=padding, attention="causal")
    chunks, _ = chunked(TEXTS, CHUNKING, Tokenizer(spec))
    values_CD = late_vectors(spec, TEXTS, CHUNKING, batch_tokens=300, packing=packing)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("")["input_ids"] == [1]
    np.testing.assert_allclose(values_CD, plain_loop(tmp_path, TEXTS, chunks, 12, room=63), atol=5e-5)


def test_one_chunk_that_is_the_document_differs_from_its_ordinary_vector_by_special_tokens_alone(
    tmp_path: Path,
) -> None:
    spec = spec_of(checkpoints.tiny_bert(tmp_path))
    text = text_of(8)
    ids = Tokenizer(spec)(pa.array([text])).input_ids
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        states = model(input_ids=torch.tensor(ids.to_pylist())).last_hidden_state[0]
    np.testing.assert_allclose(Embedder(spec, device="cpu")(ids).values_ND[0], states.mean(0), atol=1e-5)
    np.testing.assert_allclose(late_vectors(spec, [text], CHUNKING)[0], states[1:-1].mean(0), atol=1e-5)


def test_a_head_and_fewer_dims_apply_to_every_chunk(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    checkpoints.save_dense(tmp_path / "2_Dense", (32, 16), torch.nn.Tanh(), True, seed=1)
    plain_CD = late_vectors(spec_of(tmp_path), TEXTS, CHUNKING)
    values_CD = late_vectors(spec_of(tmp_path, head=["2_Dense"], normalize=True), TEXTS, CHUNKING)
    dense = load_file(tmp_path / "2_Dense" / "model.safetensors")
    expected_CD = np.tanh(plain_CD @ dense["linear.weight"].T + dense["linear.bias"])
    expected_CD /= np.linalg.norm(expected_CD, axis=1, keepdims=True)
    np.testing.assert_allclose(values_CD, expected_CD, atol=1e-5)


def test_columns_of_chunks(tmp_path: Path) -> None:
    spec = spec_of(checkpoints.tiny_bert(tmp_path))
    tokenizer = Tokenizer(spec)
    chunks, tokens = chunked(TEXTS, CHUNKING, tokenizer)
    texts = chunks["text"].to_pylist()
    assert tokens["num_tokens"].to_pylist() == [len(tokenizer.encode_with_offsets(text)) for text in texts]
    assert not any(tokens["truncated"].to_pylist())
    windows = Windows.of_table(tokens)
    assert max(map(len, windows.input_ids.to_pylist())) <= ROOM + 2
    for window, start, end in zip(windows.input_ids.to_pylist(), windows.edges, windows.edges[1:], strict=False):
        for low, high in windows.spans_C2[start:end]:
            assert 1 <= low < high <= len(window) - 1


def test_hash_changes_with_what_the_window_shows(tmp_path: Path) -> None:
    """An index keeps the vectors of rows whose hash did not change: a late vector depends on the text around it."""
    tokenizer = Tokenizer(spec_of(checkpoints.tiny_bert(tmp_path)))
    text, changed = (f"{text_of(300)} {word}" for word in ("house", "money"))
    (chunks, tokens), (other_chunks, other) = (chunked([each], CHUNKING, tokenizer) for each in (text, changed))
    assert chunks["char_end"].to_pylist()[:-1] == other_chunks["char_end"].to_pylist()[:-1]
    same = [one == two for one, two in zip(tokens["text_hash"], other["text_hash"], strict=True)]
    last_window = int(Windows.of_table(tokens).edges[-2])
    assert same == [True] * last_window + [False] * (len(same) - last_window)
    assert last_window < len(same) - 1


def test_control_characters_alone_have_the_vector_of_their_window(tmp_path: Path) -> None:
    spec = spec_of(checkpoints.tiny_bert(tmp_path))
    values_CD = late_vectors(spec, ["\x07\x07", text_of(5)], CHUNKING)
    ids = Tokenizer(spec)(pa.array(["\x07\x07"])).input_ids
    assert ids.to_pylist() == [[2, 3]]
    np.testing.assert_allclose(values_CD[0], Embedder(spec, device="cpu")(ids).values_ND[0], atol=1e-5)


def test_a_document_of_many_pieces_has_bounded_windows(tmp_path: Path) -> None:
    spec = spec_of(checkpoints.tiny_bert(tmp_path))
    text = text_of(3 * PIECE_CHARS // 5)
    assert len(text) > 2 * PIECE_CHARS
    tokenizer = Tokenizer(spec)
    tokens = tokenizer.encode_document(text)
    whole = transformers.AutoTokenizer.from_pretrained(tmp_path)(text, add_special_tokens=False)["input_ids"]
    assert tokens.ids_T.tolist() == whole
    _, columns = chunked([text], Chunking(tokens=20, late=True), tokenizer)
    windows = Windows.of_table(columns)
    lengths_M = np.diff(windows.input_ids.offsets.to_numpy())
    assert lengths_M.max() <= ROOM + 2
    assert lengths_M.sum() < 2 * len(whole)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    room=st.integers(30, 80),
    overlap=st.integers(0, 40),
    repeated=st.integers(0, 5),
)
@settings(deadline=None)
def test_every_chunk_is_whole_in_one_window_with_its_context(
    lengths: list[int], room: int, overlap: int, repeated: int
) -> None:
    ends_C = np.cumsum(lengths)
    starts_C = np.maximum(ends_C - lengths - repeated * (np.array(lengths) > repeated), 0)
    starts_C = np.maximum.accumulate(starts_C)  # no chunk begins before the one before it
    lengths_C = ends_C - starts_C
    spans_C2, num_tokens = np.stack([starts_C, ends_C], axis=1), int(ends_C[-1])
    groups = list(group_chunks(spans_C2, num_tokens, room, overlap))
    assert [group.first for group in groups] == [0, *(group.stop for group in groups[:-1])]
    assert groups[-1].stop == len(lengths)
    for group in groups:
        assert group.end - group.start <= room or lengths_C[group.first : group.stop].max() > room
        for start, end in spans_C2[group.first : group.stop]:
            if end - start > room:
                continue
            assert group.start <= start < end <= group.end
            if end - start + overlap <= room:
                assert start - group.start >= min(start, overlap // 2)
                assert group.end - end >= min(num_tokens - end, overlap // 2)
    if num_tokens <= room:
        assert groups == [Group(0, len(lengths), 0, num_tokens)]


def test_a_chunk_of_more_tokens_than_a_window_is_cut_and_counted() -> None:
    groups = list(group_chunks(np.array([[0, 5], [5, 45], [45, 50]]), 50, 30, 10))
    assert groups[1] == Group(1, 2, 5, 35)


def test_tokens_of_a_chunk_are_those_that_share_a_character_with_it() -> None:
    offsets_T2 = np.array([[0, 3], [3, 8], [8, 9], [9, 14]])  # as of "the| word|.|\n\nx"
    spans_C2 = token_spans(offsets_T2, np.array([[0, 3], [4, 9], [11, 14], [14, 14]]))
    assert spans_C2.tolist() == [[0, 1], [1, 3], [3, 4], [4, 4]]


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ({"pooling": "cls"}, "pooling cls, not mean"),
        ({"pooling": "last"}, "pooling last, not mean"),
        ({"pooling": "weighted_mean"}, "pooling weighted_mean"),
        ({"prompts": {"document": "say {text} in one word"}}, "in one word"),
        ({"prompts": {"document": "say {text} again {text}"}, "join": "apart"}, "more than once"),
        ({"prompts": {"document": ["one: ", "two: "]}}, "more than once"),
        ({"text_style": "sentence"}, "text_style sentence"),
        ({"sparse": {"head": "mlm"}}, "makes sparse vectors"),
    ],
)
def test_models_without_late_chunks_are_refused(tmp_path: Path, recipe: dict[str, Any], fault: str) -> None:
    checkpoints.tiny_bert(tmp_path)
    check_late(spec_of(tmp_path))
    with pytest.raises(InputError, match="set chunking.late to false.*" + fault):
        check_late(spec_of(tmp_path, **recipe))


def test_a_worker_whose_chunks_depend_on_their_batch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(checkpoints.tiny_bert(tmp_path))
    _, tokens = chunked(TEXTS, CHUNKING, Tokenizer(spec))
    windows = Windows.of_table(tokens)
    loaded = load_chunk_embedder(spec, device="cpu")
    np.testing.assert_array_equal(loaded(windows).values_ND, Embedder(spec, device="cpu").of_chunks(windows).values_ND)
    monkeypatch.setattr(Batch, "row_starts", lambda self, side: np.zeros(len(self.lengths_B), np.int64))
    with pytest.raises(InputError, match="self-test: a late chunk .* different vectors"):
        load_chunk_embedder(spec, device="cpu")


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"late": True}, "set chunking.tokens too"),
        ({"tokens": 100, "window_overlap": 5}, "set chunking.late to true"),
        ({"tokens": 100, "late": True, "window_overlap": -1}, "window_overlap to 0 or more, got -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Chunking(**fields)


def test_overlap_of_windows_is_half_of_one_at_most() -> None:
    check_fits(Chunking(tokens=100, late=True, window_overlap=127), 254)
    with pytest.raises(InputError, match="window_overlap to 127 or less.*got 128"):
        check_fits(Chunking(tokens=100, late=True, window_overlap=128), 254)
    assert Chunking(tokens=100, late=True).window_overlap_of(254) == 63
    assert Chunking(tokens=100, late=True).window_overlap_of(8190) == 512


def test_tokens_of_windows_are_told_batch_by_batch(tmp_path: Path) -> None:
    spec = spec_of(checkpoints.tiny_bert(tmp_path / "model"))
    _, tokens = chunked(TEXTS, Chunking(tokens=12, late=True), Tokenizer(spec))
    told: list[int] = []
    Embedder(spec, device="cpu", batch_tokens=128).of_chunks(Windows.of_table(tokens), told.append)
    assert sum(told) == tokens_read(tokens).sum()
    assert len(told) > 3
