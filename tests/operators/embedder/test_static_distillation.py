"""A transformer distilled into a table: each step against scikit-learn and transformers, and what it is worth."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import sentence_transformers
import torch
import transformers
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from operators.embedder.factory import load_embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.static_distillation import distill_static
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from tests import checkpoints
from tests.operators.embedder.references import Record, compare

RECIPES = Path(__file__).parents[4] / "configs" / "models"
DATA = Path(__file__).parents[4].parent / "shared" / "data"
UNUSED = r"\[unused\d+\]"
TEXTS = ["the year of water", "Company", "zebra, or not?", "world " * 500]


def embed(model: str, texts: list[str]) -> NDArray[np.float32]:
    spec = embedder_spec(model, EmbedderConfig(), RECIPES)
    return load_embedder(spec)(Tokenizer(spec)(pa.array(texts)).input_ids).values_ND


@pytest.mark.parametrize("dims", [5, None])
def test_the_table_is_each_token_alone_then_pca_then_weights(tmp_path: Path, dims: int | None) -> None:
    bert = checkpoints.tiny_bert(tmp_path / "bert")
    spec = embedder_spec(str(bert), EmbedderConfig(), RECIPES)
    done = distill_static(spec, tmp_path / "static", dims, 1e-3, exclude="[!-/]")
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(bert), transformers.AutoModel.from_pretrained(bert)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    refused = {*tokenizer.all_special_tokens, *map(chr, range(ord("!"), ord("/") + 1))}
    kept = [i for i, token in enumerate(tokens) if token not in refused]
    with torch.inference_mode():
        alone = [model(torch.tensor([[2, i, 3]])).last_hidden_state[0].mean(0) for i in kept]
    vectors_KD = torch.stack(alone).numpy().astype(np.float64)
    pca = PCA(dims, svd_solver="full").fit(vectors_KD) if dims else None
    reduced_KP = vectors_KD if pca is None else pca.transform(vectors_KD)
    p_K = 1 / np.arange(2, len(kept) + 2)
    weighted_KP = reduced_KP * (1e-3 / (1e-3 + p_K / p_K.sum()))[:, None]
    assert (done.num_tokens, done.num_zero) == (len(kept), len(tokens) - len(kept))
    assert done.explained_variance == pytest.approx(1.0 if pca is None else pca.explained_variance_ratio_.sum())
    texts = ["the year of water", "company story"]
    expected = []
    for text in texts:
        mean_P = weighted_KP[[kept.index(i) for i in tokenizer(text, add_special_tokens=False).input_ids]].mean(axis=0)
        expected.append(mean_P / np.linalg.norm(mean_P))
    values_NP = embed(str(tmp_path / "static"), texts)
    # directions of PCA have no sign of their own, so cosines are compared
    np.testing.assert_allclose(values_NP @ values_NP.T, np.stack(expected) @ np.stack(expected).T, atol=1e-5)
    np.testing.assert_allclose(np.abs(values_NP), np.abs(expected), atol=1e-4)


def test_sentence_transformers_reads_it_alike(tmp_path: Path, record_property: Record) -> None:
    spec = embedder_spec(str(checkpoints.tiny_bert(tmp_path / "bert")), EmbedderConfig(), RECIPES)
    distill_static(spec, tmp_path / "static", 12, 1e-4, UNUSED)
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "static"), device="cpu")
    found_ND = embed(str(tmp_path / "static"), TEXTS)
    compare(record_property, "static-minilm", "sentence-transformers", found_ND, model.encode(TEXTS))
    np.testing.assert_allclose(found_ND, model.encode(TEXTS), atol=1e-6)


def test_a_decoder_is_distilled_too(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path / "decoder", kind="qwen2")
    spec = embedder_spec(str(tmp_path / "decoder"), EmbedderConfig(), RECIPES)
    distill_static(spec, tmp_path / "static", 12, None, UNUSED)
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "static"), device="cpu")
    np.testing.assert_allclose(embed(str(tmp_path / "static"), TEXTS), model.encode(TEXTS), atol=1e-6)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    spec = embedder_spec(str(checkpoints.tiny_bert(tmp_path / "bert")), EmbedderConfig(), RECIPES)
    with pytest.raises(InputError, match="set dims to 32 or less, or to null"):
        distill_static(spec, tmp_path / "static", 33, 1e-4, UNUSED)
    distill_static(spec, tmp_path / "static", 12, 1e-4, UNUSED)
    static = embedder_spec(str(tmp_path / "static"), EmbedderConfig(), RECIPES)
    with pytest.raises(InputError, match="give a transformer to distil: .* is static already"):
        distill_static(static, tmp_path / "again", 6, 1e-4, UNUSED)


def spearman_of(model: str, first: list[str], second: list[str], scores: list[float]) -> float:
    one_ND, other_ND = embed(model, first), embed(model, second)
    return float(scipy.stats.spearmanr((one_ND * other_ND).sum(axis=1), scores).statistic)


def pairs_of(path: Path, columns: tuple[str, str]) -> tuple[list[str], list[str], list[float]]:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    first, second = ([row[name] for row in rows] for name in columns)
    return first, second, [float(row["score"]) for row in rows]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_static_minilm_is_worth_what_was_measured(tmp_path: Path) -> None:
    """As measured when it was written: STSb .661 (MiniLM itself .820), WordSim-353 .684, SimLex-999 .455."""
    distill_static(embedder_spec("minilm", EmbedderConfig(), RECIPES), tmp_path / "static", 256, 1e-4, UNUSED)
    model = str(tmp_path / "static")
    sts = spearman_of(model, *pairs_of(DATA / "sts" / "stsb-en" / "test.tsv", ("sentence1", "sentence2")))
    wordsim = spearman_of(model, *pairs_of(DATA / "wordsim" / "EN-WS-353-ALL.tsv", ("word1", "word2")))
    simlex = spearman_of(model, *pairs_of(DATA / "wordsim" / "EN-SIMLEX-999.tsv", ("word1", "word2")))
    print(f"\nstatic MiniLM: STSb {sts:.4f}, WordSim-353 {wordsim:.4f}, SimLex-999 {simlex:.4f}")
    assert (sts, wordsim, simlex) == pytest.approx((0.661, 0.684, 0.455), abs=0.01)
    reference = sentence_transformers.SentenceTransformer(model, device="cpu")
    texts = pairs_of(DATA / "sts" / "stsb-en" / "test.tsv", ("sentence1", "sentence2"))[0]
    np.testing.assert_allclose(embed(model, texts), reference.encode(texts), atol=1e-6)
