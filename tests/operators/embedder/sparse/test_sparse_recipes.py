"""The sparse recipes of configs/models on tiny random checkpoints, against plain implementations: each text alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

from operators.embedder.factory import load_embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.sparse import heads, vocabulary
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.embedder.vectors import Vectors
from operators.errors import InputError
from tests import checkpoints

RECIPES = Path(__file__).parents[4] / "configs" / "models"
WORDS = checkpoints.WORDS
# 1 to 90 words, in no order of length; the longest are longer than the 64 tokens that are read
TEXTS = [" ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(1 + 37 * i % 90)) for i in range(20)]
TOLERANCE = 1e-4
MLM, LM = transformers.AutoModelForMaskedLM, transformers.AutoModelForCausalLM

Matrix = NDArray[np.float32]


def embed(
    name: str,
    folder: Path,
    texts: Sequence[str],
    batch_tokens: int | None = None,
    role: str = "document",
    packing: bool = False,
    **changes: Any,
) -> Vectors:
    """The repository's recipe with a tiny checkpoint, and what it makes of some texts."""
    fields = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    fields = {**fields, "checkpoint": str(folder), "max_tokens": 64, "compute_dtype": "float32", **changes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields))
    spec = embedder_spec(str(path), EmbedderConfig(device="cpu", role=role), RECIPES)
    embedder = load_embedder(spec, batch_tokens=batch_tokens, device="cpu", packing=packing)
    return embedder(Tokenizer(spec)(pa.array(list(texts))).input_ids)


def check(name: str, folder: Path, expected_NV: Matrix, record: Any, texts: Sequence[str] = TEXTS, **how: Any) -> None:
    """Compare in large batches, row by row, padded on each side, and packed; vectors have to be sound as well."""
    largest = 0.0
    ways = [{"padding": side, "batch_tokens": tokens} for side in ("right", "left") for tokens in (None, 1)]
    for way in [*ways, {"packing": True}] if how.pop("packs", True) else ways:
        found = embed(name, folder, texts, **way, **how)
        assert found.sparse is not None
        assert found.sparse.faults(expected_NV.shape[1]) == []
        assert found.finite_N.all()
        assert found.padding_tokens == 0 or "packing" not in way
        difference = np.abs(found.sparse.dense(expected_NV.shape[1]) - expected_NV)
        largest = max(largest, float(difference.max()))
    assert (expected_NV > 0).any(axis=1).all()
    record("recipe", name)
    record("reference", "sentence-transformers" if name == "splade-v3" else "transformers, each text alone")
    record("difference", largest)
    assert largest <= TOLERANCE


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "mpnet", "modernbert"])
def test_splade_is_sentence_transformers_sparse_encoder(tmp_path: Path, kind: Any, record_property: Any) -> None:
    if kind == "bert":
        checkpoints.tiny_bert(tmp_path, auto=MLM)
    else:
        checkpoints.tiny_encoder(tmp_path, kind=kind, auto=MLM)
    transformer = MLMTransformer(str(tmp_path), max_seq_length=64)
    model = SparseEncoder(modules=[transformer, SpladePooling("max")], device="cpu")
    expected_NV = model.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    check("splade-v3", tmp_path, expected_NV, record_property, packs=kind != "mpnet")


def test_splade_of_one_row_needs_no_dense_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few logits and a row at a time give what all at once give."""
    checkpoints.tiny_bert(tmp_path, auto=MLM)
    whole = embed("splade-v3", tmp_path, TEXTS)
    monkeypatch.setattr(vocabulary, "LOGITS_AT_ONCE", 1000)
    monkeypatch.setattr(heads, "WEIGHTS_AT_ONCE", 1)
    slices = embed("splade-v3", tmp_path, TEXTS)
    assert whole.sparse is not None
    assert slices.sparse is not None
    np.testing.assert_array_equal(whole.sparse.indices_S, slices.sparse.indices_S)
    np.testing.assert_allclose(whole.sparse.weights_S, slices.sparse.weights_S, atol=1e-6)


def decoder_splade(folder: Path, rows: Sequence[list[int]], bidirectional: bool, top: int) -> Matrix:
    model = LM.from_pretrained(folder).eval()
    vectors = []
    for row in rows:
        visible = torch.ones(1, 1, len(row), len(row), dtype=torch.bool) if bidirectional else None
        with torch.inference_mode():
            logits_LV = model(input_ids=torch.tensor([row]), attention_mask=visible).logits[0]
        weights_V = torch.log(1 + torch.relu(logits_LV)).max(dim=0).values
        kept = weights_V.topk(top)
        vectors.append(torch.zeros_like(weights_V).scatter(0, kept.indices, kept.values).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize(
    ("kind", "attention", "fields"),
    [
        ("llama", "bidirectional", {}),
        ("llama", "causal", {"tie_word_embeddings": True}),
        ("qwen3", "bidirectional", {}),
        ("gemma3", "causal", {"final_logit_softcapping": 2.0, "sliding_window": 256}),
    ],
)
def test_decoder_splade(tmp_path: Path, kind: Any, attention: str, fields: Any, record_property: Any) -> None:
    """Without <s>, which the tokenizer would put first."""
    checkpoints.tiny_decoder(tmp_path, kind=kind, auto=LM, **fields)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for role, prompt in (("query", "query: "), ("document", "passage: ")):
        rows = [tokenizer(prompt + text, add_special_tokens=False)["input_ids"][:64] for text in TEXTS]
        assert all(1 not in row for row in rows)
        expected_NV = decoder_splade(tmp_path, rows, attention == "bidirectional", top=100)
        changes = {"attention": attention, "sparse": {"head": "lm", "top": 100}}
        check("laconic-1b", tmp_path, expected_NV, record_property, role=role, **changes)


def test_tokens_of_the_prompt_can_be_left_out(tmp_path: Path, record_property: Any) -> None:
    checkpoints.tiny_decoder(tmp_path, kind="llama", auto=LM)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = LM.from_pretrained(tmp_path).eval()
    prompt = tokenizer("passage:", add_special_tokens=False)["input_ids"]
    vectors = []
    for text in TEXTS:
        row = tokenizer("passage: " + text, add_special_tokens=False)["input_ids"][:64]
        with torch.inference_mode():
            logits_LV = model(input_ids=torch.tensor([row])).logits[0, len(prompt) :]
        vectors.append(torch.log(1 + torch.relu(logits_LV)).max(dim=0).values.numpy())
    changes = {"attention": "causal", "sparse": {"head": "lm", "pool_over": "text"}}
    check("laconic-1b", tmp_path, np.stack(vectors), record_property, **changes)


SPECIAL = range(5)  # ids of <|endoftext|> <s> </s> <pad> [MASK]


def lexical_weights(folder: Path) -> tuple[Matrix, Matrix]:
    """BGE-M3's dense and lexical vectors: relu(w . state + b), the largest of each token, specials left out."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    linear = load_file(folder / "sparse_linear.safetensors")
    dense, sparse = [], []
    for text in TEXTS:
        row = tokenizer(text, truncation=True, max_length=64)["input_ids"]
        with torch.inference_mode():
            states_LD = model(input_ids=torch.tensor([row])).last_hidden_state[0]
        weights_L = torch.relu(states_LD @ linear["weight"][0] + linear["bias"]).tolist()
        vector = np.zeros(len(tokenizer), np.float32)
        for token, weight in zip(row, weights_L, strict=True):
            if token not in SPECIAL:
                vector[token] = max(vector[token], weight)
        sparse.append(vector)
        dense.append(torch.nn.functional.normalize(states_LD[0], dim=0).numpy())
    return np.stack(dense), np.stack(sparse)


def save_token_weights(folder: Path, width: int = 32) -> None:
    torch.manual_seed(1)
    save_file({"weight": torch.randn(1, width), "bias": torch.randn(1)}, folder / "sparse_linear.safetensors")


def test_bge_m3_has_dense_and_lexical_vectors_of_one_pass(tmp_path: Path, record_property: Any) -> None:
    checkpoints.tiny_encoder(tmp_path, kind="xlm-roberta")
    save_token_weights(tmp_path)
    dense_ND, sparse_NV = lexical_weights(tmp_path)
    check("bge-m3", tmp_path, sparse_NV, record_property)
    assert np.abs(embed("bge-m3", tmp_path, TEXTS).values_ND - dense_ND).max() <= TOLERANCE
    few = embed("bge-m3", tmp_path, TEXTS, sparse={"head": "token_weights", "top": 3}).sparse
    assert few is not None
    for vector, whole in zip(few.dense(sparse_NV.shape[1]), sparse_NV, strict=True):
        np.testing.assert_allclose(np.sort(vector)[-3:], np.sort(whole)[-3:], atol=TOLERANCE)
        assert (vector > 0).sum() == min(3, (whole > 0).sum())


LLAMA_3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
BEFORE = (
    "<|start_header_id|>system<|end_header_id|>\n\nYou are an AI assistant that can understand human language."
    '<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nPassage: "'
)
AFTER = (
    '". Use one word to represent the passage in a retrieval task. Make sure your word is in lowercase.<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\nThe word is: "'
)


def promptreps(
    folder: Path, texts: Sequence[str], scale: int | None, stop_words: Sequence[str]
) -> tuple[Matrix, Matrix]:
    """State and logits at the last token of each prompt alone; logits of the words' tokens, the 128 largest."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = LM.from_pretrained(folder).eval()
    dense, sparse = [], []
    for text in texts:
        row = tokenizer(BEFORE + text + AFTER)["input_ids"]
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([row]), output_hidden_states=True)
        weights_V = torch.log(1 + torch.relu(output.logits[0, -1])).numpy()
        words = [word for word in re.findall(r"\w+", text.lower()) if word not in stop_words]
        ids = sorted({i for word in words for i in tokenizer(word, add_special_tokens=False)["input_ids"]})
        ids = ids or np.argsort(-weights_V)[:10].tolist()
        kept = sorted(ids, key=lambda i: -weights_V[i])[:128]
        vector = np.zeros_like(weights_V)
        vector[kept] = weights_V[kept] if scale is None else np.rint(weights_V[kept] * scale)
        sparse.append(vector)
        dense.append(torch.nn.functional.normalize(output.hidden_states[-1][0, -1], dim=0).numpy())
    return np.stack(dense), np.stack(sparse)


@pytest.mark.parametrize("scale", [None, 100])
def test_promptreps(tmp_path: Path, scale: int | None, record_property: Any) -> None:
    checkpoints.tiny_decoder(tmp_path, kind="llama", auto=LM, specials=LLAMA_3, max_tokens=1024)
    settings = yaml.safe_load((RECIPES / "promptreps-llama-3-8b.yaml").read_text())["sparse"]
    texts = [text for text in TEXTS if len(text) < 200] + [
        "The end",
        "Not this one.",
        "Über 20 Boys",
        "it is",
        "Is it?",
    ]
    dense_ND, sparse_NV = promptreps(tmp_path, texts, scale, settings["stop_words"])
    changes = {"max_tokens": 1000, "sparse": {**settings, "integer_scale": scale}}
    sound = (sparse_NV > 0).any(axis=1)
    assert sound.sum() > 10
    check(
        "promptreps-llama-3-8b",
        tmp_path,
        sparse_NV[sound],
        record_property,
        [text for text, is_sound in zip(texts, sound, strict=True) if is_sound],
        **changes,
    )
    found = embed("promptreps-llama-3-8b", tmp_path, texts, **changes)
    assert np.abs(found.values_ND - dense_ND).max() <= TOLERANCE


def test_a_recipe_without_its_head_is_refused(tmp_path: Path) -> None:
    """No language model's head, no linear layer, a layer of another width, logits made otherwise."""
    checkpoints.tiny_bert(tmp_path / "plain")
    with pytest.raises(InputError, match=r"incomplete: .* cls\.predictions"):
        embed("splade-v3", tmp_path / "plain", TEXTS)
    checkpoints.tiny_encoder(tmp_path / "m3", kind="xlm-roberta")
    torch.save({}, tmp_path / "m3" / "sparse_linear.pt")
    with pytest.raises(InputError, match=r"convert sparse_linear.pt to .*save_file"):
        embed("bge-m3", tmp_path / "m3", TEXTS)
    save_token_weights(tmp_path / "m3", width=16)
    with pytest.raises(InputError, match=r"does not fit: a weight \[1, 32\]"):
        embed("bge-m3", tmp_path / "m3", TEXTS)
    checkpoints.tiny_decoder(tmp_path / "scaled", auto=LM)
    config = transformers.GraniteConfig(
        **{**checkpoints.decoder_config("llama", 400).to_dict(), "model_type": "granite"}, logits_scaling=3.0
    )
    checkpoints.save_model(tmp_path / "scaled", config, auto=LM)
    with pytest.raises(InputError, match="computes logits otherwise"):
        embed("laconic-1b", tmp_path / "scaled", TEXTS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparse": None}, "pooling: none is for recipes with sparse vectors"),
        ({"layers": [1, -1]}, "the last layer's states"),
        ({"adapters": ["lora"]}, "and merge adapters into it"),
        ({"sparse": {"head": "next_word", "pool_over": "text"}}, "no meaning with head: next_word"),
        ({"sparse": {"head": "mlm", "stop_words": ["a"]}}, "are for head: next_word"),
        ({"prompts": {"document": ["a ", "b "]}}, "sparse vectors of 2 readings"),
    ],
)
def test_recipes_that_do_not_fit_together_are_refused(tmp_path: Path, fields: Any, message: str) -> None:
    checkpoints.tiny_bert(tmp_path, auto=MLM)
    with pytest.raises(InputError, match=message):
        embed("splade-v3", tmp_path, TEXTS, **fields)


def test_a_text_without_a_sound_vector_is_said(tmp_path: Path) -> None:
    """NaN in the states of one token spoils the texts that have it, and no others."""
    checkpoints.tiny_bert(tmp_path, auto=MLM)
    clean = embed("splade-v3", tmp_path, ["time", "people way"])
    weights = load_file(tmp_path / "model.safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    weights["bert.embeddings.word_embeddings.weight"][tokenizer.convert_tokens_to_ids("people")] = torch.nan
    bias = weights["cls.predictions.bias"]
    weights["cls.predictions.decoder.weight"] = torch.nan_to_num(weights["bert.embeddings.word_embeddings.weight"])
    save_file(
        {**weights, "cls.predictions.decoder.bias": bias.clone()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    found = embed("splade-v3", tmp_path, ["time", "people way"])
    assert clean.finite_N.all()
    assert found.finite_N.tolist() == [True, False]
