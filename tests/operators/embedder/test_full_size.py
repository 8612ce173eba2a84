"""Published sizes, counted on models without weights: shapes that are wrong anywhere give other numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
import yaml

from operators.embedder.model.latent_attention import LatentAttention

RECIPES = Path(__file__).parents[3] / "configs" / "models"

MISTRAL_7B = transformers.MistralConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
)
QWEN2_1_5B = transformers.Qwen2Config(
    vocab_size=151646,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
)


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def without_weights(config: transformers.PreTrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):
        model: torch.nn.Module = transformers.AutoModel.from_config(config)
    return model


def test_e5_mistral_has_seven_billion() -> None:
    assert parameters(without_weights(MISTRAL_7B)) == 7_110_660_096  # 7.24B with the language model's head


def test_nv_embeds_latent_attention_makes_it_7_85_billion() -> None:
    with torch.device("meta"):
        head = LatentAttention(width=4096, num_latents=512, num_heads=8, head_width=4096)
    attention, feed_forward = head.cross_attend_blocks
    assert head.latents.numel() == 512 * 4096  # 2.1M
    assert parameters(attention.fn) == 4 * 4096 * 32768  # 536.9M
    assert parameters(feed_forward.fn) == pytest.approx(201.4e6, rel=1e-3)
    assert parameters(head) == pytest.approx(0.740e9, rel=1e-3)
    whole = parameters(head) + parameters(without_weights(MISTRAL_7B))
    assert whole / 1e9 == pytest.approx(7.85, abs=0.005)  # as published


def test_stella_is_1_5_billion_and_a_head_for_each_size() -> None:
    recipe = yaml.safe_load((RECIPES / "stella-1.5b.yaml").read_text())
    assert recipe["dims"] == [512, 768, 1024, 2048, 4096, 6144, 8192]
    with torch.device("meta"):
        heads = {dims: torch.nn.Linear(QWEN2_1_5B.hidden_size, dims, bias=True) for dims in recipe["dims"]}
    assert {dims: parameters(head) for dims, head in heads.items()} == {
        512: 786_944,
        768: 1_180_416,
        1024: 1_573_888,
        2048: 3_147_776,
        4096: 6_295_552,
        6144: 9_443_328,
        8192: 12_591_104,
    }
    trunk = parameters(without_weights(QWEN2_1_5B))
    assert trunk / 1e9 == pytest.approx(1.54, abs=0.005)  # the published 1.5B, embeddings not tied to a head
