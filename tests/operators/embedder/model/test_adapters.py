"""Adapters as they were trained, on a language model or on its trunk, merged or apart, against peft itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
import yaml
from numpy.typing import NDArray

from operators.embedder.engine import Embedder
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.tokens.tokenizing import Tokenizer
from tests import checkpoints

RECIPES = Path(__file__).parents[4] / "configs" / "models"
TEXTS = ["the world", "a day in the life of the people " * 4, "water"]


def embed(folder: Path, **fields: Any) -> NDArray[np.float32]:
    recipe = {"checkpoint": str(folder), "pooling": "last", "normalize": False, "max_tokens": 64, **fields}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    spec = embedder_spec(str(folder / "recipe.yaml"), EmbedderConfig(device="cpu"), RECIPES)
    return Embedder(spec, device="cpu")(Tokenizer(spec)(pa.array(TEXTS)).input_ids).values_ND


def last_states(folder: Path, trunk: Any) -> NDArray[np.float32]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        rows = [tokenizer(text, truncation=True, max_length=64, return_tensors="pt")["input_ids"] for text in TEXTS]
        return np.stack([trunk(input_ids=row).last_hidden_state[0, -1].numpy() for row in rows])


@pytest.fixture
def language_model(tmp_path: Path) -> Any:
    """A language model whose checkpoint is in `tmp_path`, with another layer norm than its trunk had."""
    checkpoints.tiny_decoder(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path)
    return transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()


@pytest.mark.parametrize("merged", [True, False])
def test_trained_on_a_language_model(tmp_path: Path, language_model: Any, merged: bool) -> None:
    base_ND = last_states(tmp_path, language_model.model)
    adapted = checkpoints.with_lora(language_model, seed=1, task_type="CAUSAL_LM").eval()
    adapted.save_pretrained(str(tmp_path / "lora"))
    expected_ND = last_states(tmp_path, language_model.model)  # PEFT puts its layers into the model it is given
    assert np.abs(expected_ND - base_ND).max() > 0.1
    found_ND = embed(tmp_path, adapters=["lora"], merge_adapters=merged)
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-5)
    np.testing.assert_allclose(embed(tmp_path), base_ND, atol=1e-5)


@pytest.mark.parametrize("merged", [True, False])
def test_trained_on_a_trunk(tmp_path: Path, merged: bool) -> None:
    trunk = transformers.AutoModel.from_pretrained(checkpoints.tiny_decoder(tmp_path, kind="qwen3")).eval()
    checkpoints.with_lora(trunk, seed=1).save_pretrained(str(tmp_path / "lora"))
    expected_ND = last_states(tmp_path, trunk)
    found_ND = embed(tmp_path, adapters=["lora"], merge_adapters=merged)
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-5)


def test_an_encoder_keeps_its_fast_path(tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(checkpoints.tiny_bert(tmp_path)).eval()
    adapted = checkpoints.with_lora(model, seed=2, modules=["query", "value"])
    adapted.save_pretrained(str(tmp_path / "lora"))
    expected_ND = last_states(tmp_path, model)
    np.testing.assert_allclose(embed(tmp_path, adapters=["lora"]), expected_ND, atol=1e-5)


def test_an_adapter_of_the_hub_at_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = transformers.AutoModel.from_pretrained(checkpoints.tiny_decoder(tmp_path)).eval()
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--owner--lora"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    checkpoints.with_lora(trunk, seed=1).save_pretrained(str(repository / "snapshots" / commit))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    expected_ND = last_states(tmp_path, trunk)
    np.testing.assert_allclose(embed(tmp_path, adapters=[f"owner/lora@{commit}"]), expected_ND, atol=1e-5)
    embed(tmp_path, adapters=["owner/lora"])
    spec = embedder_spec(str(tmp_path / "recipe.yaml"), EmbedderConfig(), RECIPES)
    assert spec.recipe.adapters == spec.adapter_digests == (f"owner/lora@{commit}",)
