"""The packed CPU forward against the transformers model that it replaces."""

from __future__ import annotations

import json
import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from operators.embedder.model import fast_bert
from operators.embedder.model.pooling import pool
from operators.embedder.recipe.keywords import Pooling
from operators.embedder.tokens.batching import Batch

FAMILIES = {
    "bert": (transformers.BertConfig, transformers.BertModel),
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
    "camembert": (transformers.CamembertConfig, transformers.CamembertModel),
}
MIXED_LENGTHS = (512, 300, 131, 64, 64, 64, 33, 17, 17, 8, 7, 2, 1, 1)


def random_model(
    family: str = "bert", hidden: int = 48, heads: int = 4, inner: int = 80
) -> transformers.PreTrainedModel:
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=211,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_hidden_layers=3,
        intermediate_size=inner,
        max_position_embeddings=512 if family == "bert" else 514,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: transformers.PreTrainedModel = model_class(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.1)
    return model


def random_batch(lengths: tuple[int, ...], seed: int = 0, low: int = 0) -> Batch:
    lengths_B = np.array(lengths, np.int64)
    return Batch(np.random.default_rng(seed).integers(low, 211, lengths_B.sum()), lengths_B)


def rows(batch: Batch) -> list[NDArray[np.int64]]:
    return np.split(batch.ids_T, np.cumsum(batch.lengths_B)[:-1])


def batch_of(texts: list[NDArray[np.int64]]) -> Batch:
    return Batch(np.concatenate(texts), np.array([len(text) for text in texts], np.int64))


@torch.inference_mode()
def reference(model: transformers.PreTrainedModel, batch: Batch, pooling: Pooling) -> torch.Tensor:
    vectors = []
    for ids_L in rows(batch):
        mask_1L = torch.ones(1, len(ids_L), dtype=torch.bool)
        output = model(input_ids=torch.from_numpy(ids_L)[None], attention_mask=mask_1L)
        vectors.append(pool(output.last_hidden_state, mask_1L, pooling)[0])
    return torch.stack(vectors)


def packed(model: transformers.PreTrainedModel, pooling: Pooling, dtype: torch.dtype) -> fast_bert.PackedBert:
    forward = fast_bert.pack(model, pooling, dtype)
    assert forward is not None
    return forward


def cosines(one_BD: torch.Tensor, other_BD: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(one_BD, other_BD)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_equals_transformers(family: str, pooling: Pooling) -> None:
    model = random_model(family)
    batch = random_batch(MIXED_LENGTHS)  # ids of padding tokens included: RoBERTa's positions skip them
    result = packed(model, pooling, torch.float32)(batch)
    assert result.dtype == torch.float32
    assert (result - reference(model, batch, pooling)).abs().max() <= 1e-4


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_bfloat16_is_close_to_float32_transformers(pooling: Pooling) -> None:
    model = random_model()
    batch = random_batch(MIXED_LENGTHS)
    assert cosines(packed(model, pooling, torch.bfloat16)(batch), reference(model, batch, pooling)).min() >= 0.999


@pytest.mark.parametrize(("hidden", "heads", "inner"), [(21, 3, 13), (40, 1, 160), (64, 8, 63)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_widths(hidden: int, heads: int, inner: int, dtype: torch.dtype) -> None:
    model = random_model(hidden=hidden, heads=heads, inner=inner)
    batch = random_batch((45, 31, 31, 5))
    result, expected = packed(model, "mean", dtype)(batch), reference(model, batch, "mean")
    if dtype == torch.float32:
        assert (result - expected).abs().max() <= 1e-4
    assert cosines(result, expected).min() >= 0.999


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1 - 1e-6), (torch.bfloat16, 0.9995)])
def test_a_text_has_one_vector_whatever_its_batch(dtype: torch.dtype, least: float) -> None:
    forward = packed(random_model(), "mean", dtype)
    texts = rows(random_batch((90, 90, 64, 33, 12, 12, 12, 3, 1)))
    together = forward(batch_of(texts))
    alone = torch.cat([forward(batch_of([text])) for text in texts])
    backwards = forward(batch_of(texts[::-1])).flip(0)
    shuffled = np.random.default_rng(0).permutation(len(texts))
    mixed = torch.empty_like(together)
    mixed[torch.from_numpy(shuffled)] = forward(batch_of([texts[i] for i in shuffled]))
    for other in (alone, backwards, mixed):
        assert cosines(together, other).min() >= least


def test_many_texts_of_one_length_are_cut_into_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    batch = random_batch((20,) * 9 + (11,) * 4)
    expected = packed(model, "mean", torch.bfloat16)(batch)
    monkeypatch.setattr(fast_bert, "MAX_SCORES", 4 * 20 * 20 * 2)
    runs = list(batch.runs(fast_bert.MAX_SCORES // 4))
    assert [run.num_texts for run in runs] == [2, 2, 2, 2, 1, 4]
    tokens = [run.num_texts * run.length for run in runs]
    assert all(
        one.first_token + size == two.first_token for (one, two), size in zip(pairwise(runs), tokens, strict=False)
    )
    assert cosines(packed(model, "mean", torch.bfloat16)(batch), expected).min() >= 0.9999


@pytest.mark.parametrize("shift", [0.0, 84.0, 120.0, -120.0])
def test_scores_of_any_size(shift: float) -> None:
    """exp(120) is infinite in bfloat16, exp(84) times a value may be, exp(-120) is 0; softmax of all is the same."""
    generator = torch.Generator().manual_seed(0)
    qkv_NL3HK = torch.randn(3, 9, 3, 2, 16, generator=generator).to(torch.bfloat16)
    qkv_NL3HK[:, :, :2] *= 0.5
    qkv_NL3HK[:, :, 0, :, 0] = 1.0
    qkv_NL3HK[:, :, 1, :, 0] = shift  # adds `shift` to every score, which changes no weight
    qkv_NL3HK[:, :, 2] *= 1000.0
    query, key, value = qkv_NL3HK.float().permute(2, 0, 3, 1, 4)
    expected = ((query @ key.transpose(-1, -2)).softmax(-1) @ value).transpose(1, 2)
    out_NLHK = torch.empty(3, 9, 2, 16, dtype=torch.bfloat16)
    fast_bert._short_attention(qkv_NL3HK, out_NLHK)
    assert torch.isfinite(out_NLHK).all()
    # scores near 120 are rounded to 0.5 in bfloat16
    least = 0.999 if shift == 0.0 else 0.9
    assert cosines(out_NLHK.float().reshape(1, -1), expected.reshape(1, -1)).item() >= least


def test_texts_longer_than_short_attention_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    short_attention, lengths = fast_bert._short_attention, set()

    def recorded(qkv_NL3HK: torch.Tensor, out_NLHK: torch.Tensor) -> None:
        lengths.add(qkv_NL3HK.shape[1])
        short_attention(qkv_NL3HK, out_NLHK)

    monkeypatch.setattr(fast_bert, "MAX_SHORT", 40)
    monkeypatch.setattr(fast_bert, "_short_attention", recorded)
    # bfloat16 in torch's own linear layers, which every CPU has: oneDNN lays weights out only where it multiplies them
    monkeypatch.setattr(fast_bert, "multiplies", lambda half, device: True)
    monkeypatch.setattr(fast_bert, "prepacks", lambda: False)
    model = random_model()
    batch = random_batch((90, 41, 40, 2))
    forward = packed(model, "mean", torch.bfloat16)
    lengths.clear()
    assert cosines(forward(batch), reference(model, batch, "mean")).min() >= 0.999
    assert lengths == {40, 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_without_a_vector_leaves_the_others_alone(dtype: torch.dtype) -> None:
    model = random_model()
    batch = random_batch((20, 20, 20, 7), low=10)
    expected = packed(model, "mean", dtype)(batch)
    forward = packed(model, "mean", dtype)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5] = torch.nan  # the table is shared, not copied
    batch.ids_T[25] = 5
    result = forward(batch)
    assert result[1].isnan().all()
    others = torch.tensor([0, 2, 3])
    assert torch.isfinite(result[others]).all()
    assert cosines(result[others], expected[others]).min() >= 0.9999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_onednn(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_bert, "prepacks", lambda: False)
    model = random_model()
    batch = random_batch((60, 60, 9, 1))
    assert cosines(packed(model, "mean", dtype)(batch), reference(model, batch, "mean")).min() >= 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_the_cpu_does_not_multiply_is_computed_in_float32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_bert, "multiplies", lambda half, device: False)
    model = random_model()
    batch = random_batch((60, 9))
    assert (packed(model, "mean", dtype)(batch) - reference(model, batch, "mean")).abs().max() <= 1e-4


def test_a_model_that_computes_something_else_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    model = random_model()
    assert fast_bert.pack(model, "mean", torch.float32) is not None
    model.encoder.layer[1].intermediate.intermediate_act_fn = torch.nn.ReLU()
    with caplog.at_level(logging.WARNING):
        assert fast_bert.pack(model, "mean", torch.float32) is None
    assert "differs" in caplog.text


def test_a_class_of_its_own_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    class OtherBert(transformers.BertModel):  # type: ignore[misc]
        """What remote code may be."""

    with caplog.at_level(logging.WARNING):
        assert fast_bert.pack(OtherBert(random_model().config).eval(), "mean", torch.float32) is None
    assert "OtherBert" in caplog.text


def test_a_model_with_few_positions() -> None:
    config = transformers.RobertaConfig(
        vocab_size=50, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16
    )
    config.max_position_embeddings = 6  # texts of 4 tokens at most
    assert fast_bert.pack(transformers.RobertaModel(config).eval(), "mean", torch.float32) is not None


@pytest.mark.parametrize(
    ("config", "pooling", "expected"),
    [
        (transformers.BertConfig(), "mean", True),
        (transformers.XLMRobertaConfig(), "cls", True),
        (transformers.BertConfig(), "weighted_mean", False),
        (transformers.BertConfig(hidden_act="relu"), "mean", False),
        (transformers.BertConfig(is_decoder=True), "mean", False),
        (transformers.BertConfig(position_embedding_type="relative_key"), "mean", False),
        (transformers.BertConfig(pad_token_id=None), "mean", True),
        (transformers.RobertaConfig(pad_token_id=None), "mean", False),
        (transformers.MPNetConfig(), "mean", False),
        (transformers.Qwen3Config(), "last", False),
    ],
)
def test_supports(config: transformers.PreTrainedConfig, pooling: str, expected: bool) -> None:
    as_saved = json.loads(config.to_json_string(use_diff=True))
    assert fast_bert.supports(as_saved, pooling) is expected
