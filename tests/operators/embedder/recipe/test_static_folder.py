"""Folders of static embedders in every layout, against sentence-transformers and model2vec's formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
import sentence_transformers
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

from operators.embedder.factory import flops_of, load_embedder
from operators.embedder.recipe.files import load_recipe
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from tests.checkpoints import WORDS, wordpiece_tokenizer
from tests.static_embedders import static_folder

RECIPES = Path(__file__).parents[4] / "configs" / "models"
VOCAB = wordpiece_tokenizer().get_vocab_size()
UNKNOWN = 1  # [UNK] of the WordPiece vocabulary, which has single letters, so that only other scripts are unknown
TEXTS = [
    "the year of water",
    "Company",
    "世界 the fact",
    *(" ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(1 + 37 * i % 90)) for i in range(20)),
    "word " * 3000,
]


def table() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(VOCAB, 16)).astype(np.float32)


def embed(folder: Path, texts: list[str], **overrides: Any) -> NDArray[np.float32]:
    spec = embedder_spec(str(folder), EmbedderConfig(**overrides), RECIPES)
    vectors = load_embedder(spec)(Tokenizer(spec)(pa.array(texts)).input_ids)
    assert vectors.finite_N.all()
    return vectors.values_ND


def saved(folder: Path, *more: Any, prompts: dict[str, str] | None = None) -> sentence_transformers.SentenceTransformer:
    modules = [StaticEmbedding(wordpiece_tokenizer(), embedding_weights=table()), *more]
    model = sentence_transformers.SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
    model.save(str(folder))
    return model


@pytest.mark.parametrize("normalize", [True, False])
def test_what_sentence_transformers_saves_gives_its_vectors(tmp_path: Path, normalize: bool) -> None:
    prompts = {"query": "one question ", "document": "story "}
    model = saved(tmp_path, *[Normalize()] * normalize, prompts=prompts)
    for role in prompts:
        expected_ND = model.encode(TEXTS, prompt_name=role)
        np.testing.assert_allclose(embed(tmp_path, TEXTS, role=role), expected_ND, atol=1e-6)
    recipe = load_recipe(str(tmp_path), RECIPES)
    assert (recipe.kind, recipe.normalize, recipe.prompts["query"]) == ("static", normalize, "one question ")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("shared", [True, False])
def test_a_model2vec_folder_leaves_unknown_words_out(tmp_path: Path, dtype: Any, shared: bool) -> None:
    rng = np.random.default_rng(1)
    tensors: dict[str, Any] = {"embeddings": (table() * 20).astype(dtype)}
    if shared:  # a table whose vectors several tokens share, each with a weight of its own
        tensors |= {"mapping": rng.integers(0, VOCAB, VOCAB), "weights": rng.random(VOCAB)}
    folder = static_folder(tmp_path / "m2v", tensors, normalize=True)
    rows_VD = tensors["embeddings"].astype(np.float64)
    if shared:
        rows_VD = rows_VD[tensors["mapping"]] * tensors["weights"][:, None]
    expected = []
    for text in TEXTS:
        ids = [i for i in wordpiece_tokenizer().encode(text, add_special_tokens=False).ids if i != UNKNOWN]
        mean_D = rows_VD[ids].mean(axis=0)
        expected.append(mean_D / np.linalg.norm(mean_D))
    # torch's kernel adds up in float32, one row after another: 1e-5 for the text of some thousand tokens
    np.testing.assert_allclose(embed(folder, TEXTS), expected, atol=2e-5)
    np.testing.assert_allclose(embed(folder, TEXTS[:-1]), expected[:-1], atol=1e-6)


def test_a_model2vec_folder_with_modules_is_as_sentence_transformers_reads_it(tmp_path: Path) -> None:
    folder = static_folder(tmp_path, {"embeddings": table()}, normalize=True)
    modules = [(".", "StaticEmbedding"), ("1_Normalize", "Normalize")]
    (folder / "1_Normalize").mkdir()
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for i, (path, kind) in enumerate(modules)
            ]
        )
    )
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(embed(folder, TEXTS), model.encode(TEXTS), atol=1e-6)


def test_max_tokens_cuts(tmp_path: Path) -> None:
    saved(tmp_path)
    short, long = "the year", "the year of water and fact"
    np.testing.assert_array_equal(embed(tmp_path, [long], max_tokens=2), embed(tmp_path, [short]))


def test_flops_without_weights_are_those_counted(tmp_path: Path) -> None:
    saved(tmp_path)
    spec = embedder_spec(str(tmp_path), EmbedderConfig(), RECIPES)
    tokens = Tokenizer(spec)(pa.array(TEXTS))
    lengths_N = tokens.num_tokens.to_numpy().astype(np.int64)
    assert load_embedder(spec)(tokens.input_ids).flops == flops_of(spec)(lengths_N) == 16 * lengths_N.sum()


def test_a_changed_table_has_another_fingerprint(tmp_path: Path) -> None:
    saved(tmp_path)
    before = embedder_spec(str(tmp_path), EmbedderConfig(), RECIPES).fingerprint
    safetensors.numpy.save_file({"embedding.weight": table() + 1}, tmp_path / "model.safetensors")
    assert embedder_spec(str(tmp_path), EmbedderConfig(), RECIPES).fingerprint != before


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"embeddings": table()[:-1]}, rf"ids up to {VOCAB - 1}, but the table has only {VOCAB - 1} vectors"),
        ({"embeddings": table() * np.float32(np.nan)}, "self-test: the table has NaN"),
        ({"embeddings": table() * 0}, "nothing but zeros"),
        ({"vectors": table()}, r"has no table of vectors: none of embedding.weight, embeddings"),
    ],
)
def test_wrong_folders_are_refused(tmp_path: Path, tensors: Any, message: str) -> None:
    folder = static_folder(tmp_path, tensors)
    with pytest.raises(InputError, match=message):
        load_embedder(embedder_spec(str(folder), EmbedderConfig(), RECIPES))


def test_other_modules_and_pickled_tables_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="has only pickled weights"):
        embedder_spec(str(tmp_path), EmbedderConfig(), RECIPES)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="after StaticEmbedding, modules.json may have Normalize alone, not Dense"):
        load_recipe(str(tmp_path), RECIPES)
