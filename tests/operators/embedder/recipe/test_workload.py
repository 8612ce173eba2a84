"""The rough arithmetic of a model, against the exact count of its parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from operators.corpus.chunking_config import Chunking
from operators.embedder.factory import flops_of
from operators.embedder.recipe import workload
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.recipe.templates import Template
from operators.work.cpu import cpu_flags
from tests import checkpoints

RECIPES = Path(__file__).resolve().parents[4] / "configs" / "models"


@pytest.fixture
def spec(tmp_path: Path) -> EmbedderSpec:
    return embedder_spec(str(checkpoints.tiny_bert(tmp_path / "model")), EmbedderConfig(), RECIPES)


def test_flops_are_near_the_models_own(spec: EmbedderSpec) -> None:
    exact = flops_of(spec)(np.full(10, 60)) / 600
    assert workload.flops_per_token(spec, 60) == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # all but their embedding tables, as published
        ({"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}, 10.65e6),
        ({"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}, 42.5e6),  # DistilBERT
        (
            {
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "intermediate_size": 14336,
            },
            6.98e9,  # Mistral 7B
        ),
        (
            {
                "hidden_size": 1024,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "intermediate_size": 3072,
            },
            0.44e9,  # Qwen3 0.6B
        ),
    ],
)
def test_flops_of_published_shapes(config: dict[str, int], parameters: float) -> None:
    assert workload.transformer_flops(config, 0.0) == pytest.approx(2 * parameters, rel=0.1)


def test_tokens_follow_truncation_chunks_and_prompts(spec: EmbedderSpec) -> None:
    texts = np.array([40, 4000])
    limit = spec.recipe.max_tokens
    assert workload.tokens_of(texts, spec, Chunking()).tolist() == [12, limit]
    chunks = np.ceil(1000 / 45)
    assert workload.tokens_of(texts, spec, Chunking(tokens=50, overlap=5))[1] == pytest.approx(
        1000 * 50 / 45 + 2 * chunks
    )
    twice = dataclasses.replace(spec, templates=(Template("Say: ", "", " Again: "), Template("", "")))
    assert workload.tokens_of(texts, twice, Chunking())[0] == pytest.approx(2 * 10 + 14 / 4 + 2 + 12, abs=1)


def test_speed_goes_by_what_the_cpu_can_do() -> None:
    flags = [frozenset(), frozenset({"avx2"}), frozenset({"avx2", "avx512f"})]
    bf16 = frozenset({"avx2", "avx512f", "avx512_bf16"})
    amx = bf16 | {"amx_bf16"}
    speeds = [workload.core_flops("float32", cpu) for cpu in flags]
    assert speeds == sorted(speeds)
    assert workload.core_flops("float32", amx) == speeds[-1]
    assert speeds[-1] < workload.core_flops("bfloat16", bf16) < workload.core_flops("bfloat16", amx)
    assert workload.core_flops("bfloat16", flags[1]) == speeds[1]


def test_this_cpu_has_flags_where_linux_says_so() -> None:
    path = Path("/proc/cpuinfo")
    is_told = path.exists() and "flags" in path.read_text()
    assert bool(cpu_flags()) == is_told


def test_a_config_may_leave_sizes_out() -> None:
    assert workload.transformer_flops({}, 0.0) == pytest.approx(2 * 85e6, rel=0.01)
    assert workload.transformer_flops({"hidden_size": 8, "num_attention_heads": 0}, 1.0) > 0
