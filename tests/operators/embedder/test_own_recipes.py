"""New embedders from a YAML file alone, and what a recipe costs in tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from safetensors.torch import load_file

from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.embedder.recipe.templates import Template
from operators.embedder.tokens.tokenizing import Tokenizer
from tests import checkpoints
from tests.operators.embedder.references import (
    RECIPES,
    SHORT,
    TOLERANCE,
    embed,
    recipe_file,
    states,
    tokenizer_of,
    unit,
)


@pytest.mark.parametrize(
    ("name", "role", "readings", "copies"),
    [
        ("e5-mistral-7b", "document", 1, 1),
        ("echo-mistral-7b", "document", 1, 2),
        ("bge-en-icl", "query", 1, 1),
        ("metaeol-llama-2-7b", "document", 8, 8),
    ],
)
def test_tokens_of_a_recipe_are_those_of_the_text_and_its_own(
    tmp_path: Path, name: str, role: str, readings: int, copies: int
) -> None:
    checkpoints.tiny_decoder(tmp_path, max_tokens=2048, specials=("</s>", "<instruct>", "<query>", "<response>"))
    spec = embedder_spec(recipe_file(name, tmp_path, max_tokens=2048), EmbedderConfig(role=role), RECIPES)
    tokenizer = Tokenizer(spec)
    assert len(tokenizer.layouts) == readings
    assert sum(layout.copies for layout in tokenizer.layouts) == copies
    plain = Tokenizer(dataclasses.replace(spec, templates=(Template("", ""),)))
    text = "world people story"
    num_text_tokens = plain(pa.array([text])).num_tokens[0].as_py() - plain.layouts[0].fixed
    fixed = sum(layout.fixed for layout in tokenizer.layouts)
    found = tokenizer(pa.array([text])).num_tokens[0].as_py()
    assert found == pytest.approx(fixed + copies * num_text_tokens, abs=2 * readings)  # seams with what is around it


def test_a_new_embedder_takes_a_yaml_file_alone(tmp_path: Path) -> None:
    """SGPT: mean weighted by place, and brackets that tell queries from documents (arXiv 2202.08904)."""
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind="opt"))
    (tmp_path / "sgpt.yaml").write_text(
        """
        checkpoint: .
        pooling: weighted_mean
        normalize: true
        max_tokens: 60
        prompts: {query: "[{text}]", document: "{{text}}"}
        """
    )
    for role, (left, right) in {"query": "[]", "document": "{}"}.items():
        rows = [tokenizer(f"{left}{text}{right}")["input_ids"] for text in SHORT]
        assert max(map(len, rows)) <= 60
        expected = unit(
            (own[-1] * torch.arange(1, len(own[-1]) + 1)[:, None]).sum(0) / torch.arange(1, len(own[-1]) + 1).sum()
            for own in states(tmp_path, rows)
        )
        found_ND = embed(str(tmp_path / "sgpt.yaml"), SHORT, role=role)
        np.testing.assert_allclose(found_ND, expected, atol=TOLERANCE)


def test_another_new_embedder_of_known_parts(tmp_path: Path) -> None:
    """A decoder made bidirectional, its adapter kept apart, the second-last layer, echo, a head and two sizes."""
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind="qwen3", layers=3, specials=("</s>",)))
    model: Any = checkpoints.with_lora(transformers.AutoModel.from_pretrained(tmp_path), seed=3)
    model.save_pretrained(str(tmp_path / "lora"))
    checkpoints.save_dense(tmp_path / "2_Dense", (32, 24), torch.nn.Tanh(), True, seed=1)
    (tmp_path / "mine.yaml").write_text(
        """
        checkpoint: .
        adapters: [lora]
        merge_adapters: false
        attention: bidirectional
        layers: [-2]
        pooling: mean
        pool_over: text
        join: apart
        head: [2_Dense]
        end_token: "</s>"
        normalize: true
        max_tokens: 100
        prompts:
          document: "{task}: {text}\\nagain: {text}"
        task: the day
        dims: [8, 24]
        """
    )

    def ids(piece: str) -> list[int]:
        return list(tokenizer(piece, add_special_tokens=False)["input_ids"])

    copies = [ids(text) for text in SHORT]
    rows = [[1, *ids("the day: "), *copy, *ids("\nagain: "), *copy, *ids("</s>")] for copy in copies]
    assert max(map(len, rows)) <= 100
    head = load_file(tmp_path / "2_Dense" / "model.safetensors")
    trunk = model.merge_and_unload().eval()
    expected = unit(
        torch.tanh(own[-2][-1 - len(copy) : -1].mean(0) @ head["linear.weight"].T + head["linear.bias"])[:8]
        for own, copy in zip(states(tmp_path, rows, bidirectional=True, model=trunk), copies, strict=True)
    )
    np.testing.assert_allclose(embed(str(tmp_path / "mine.yaml"), SHORT, dims=8), expected, atol=TOLERANCE)
