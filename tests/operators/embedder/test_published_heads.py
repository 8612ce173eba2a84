"""Recipes with a head: linear layers by size, in a row, and latent attention, against formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentence_transformers
import torch
import transformers
from safetensors.torch import load_file

from tests import checkpoints
from tests.operators.embedder.references import (
    TEXTS,
    Record,
    check,
    instructed,
    states,
    tokenizer_of,
    unit,
)


@pytest.mark.parametrize("role", ["query", "document"])
def test_nv_embed(tmp_path: Path, role: str, record_property: Record) -> None:
    head = checkpoints.tiny_nv_embed(tmp_path, sliding_window=16)
    tokenizer = tokenizer_of(tmp_path)
    instruction = "Instruct: find it\nQuery: " if role == "query" else ""
    left_out = len(tokenizer.tokenize(instruction))  # as NV-Embed counts: without <s>, with the blank at the end
    rows = [instructed(tmp_path, instruction, text, "</s>") for text in TEXTS]
    model = transformers.MistralModel.from_pretrained(tmp_path / "trunk").eval()
    expected = unit(
        latent_attention(head, own[-1])[left_out:].mean(0)
        for own in states(tmp_path, rows, bidirectional=True, model=model)
    )
    check(
        record_property,
        "nv-embed-v2",
        tmp_path,
        "latent attention as published, each text alone",
        expected,
        changes={"task": "find it", "latent_attention": {"prefix": "latent_attention_model.", "heads": 2}},
        role=role,
    )


def latent_attention(head: dict[str, torch.Tensor], states_LD: torch.Tensor) -> torch.Tensor:
    """NV-Embed's formula for one text, with two heads, step by step."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], head[f"{name}.weight"], head[f"{name}.bias"])

    block = "cross_attend_blocks."
    query = norm(states_LD, f"{block}0.norm") @ head[f"{block}0.fn.to_q.weight"].T
    both = norm(head["latents"], f"{block}0.norm_context") @ head[f"{block}0.fn.to_kv.weight"].T
    key, value = both.chunk(2, dim=-1)
    outputs = []
    for q, k, v in zip(query.chunk(2, -1), key.chunk(2, -1), value.chunk(2, -1), strict=True):
        outputs.append(torch.softmax(q @ k.T / q.shape[-1] ** 0.5, dim=-1) @ v)
    states_LD = torch.cat(outputs, -1) @ head[f"{block}0.fn.to_out.weight"].T + states_LD
    inner = norm(states_LD, f"{block}1.norm") @ head[f"{block}1.fn.net.0.weight"].T + head[f"{block}1.fn.net.0.bias"]
    x, gate = inner.chunk(2, dim=-1)
    gated = x * torch.nn.functional.gelu(gate)
    return gated @ head[f"{block}1.fn.net.2.weight"].T + head[f"{block}1.fn.net.2.bias"] + states_LD


@pytest.mark.parametrize("dims", [None, 16, 48])
def test_stella(tmp_path: Path, dims: int | None, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind="qwen2"))
    for width in (16, 48):
        checkpoints.save_dense(tmp_path / f"2_Dense_{width}", (32, width), torch.nn.Identity(), True, seed=width)
    head = load_file(tmp_path / f"2_Dense_{dims or 48}" / "model.safetensors")
    prompt = "Instruct: Retrieve semantically similar text.\nQuery: "
    rows = [tokenizer(prompt + text, truncation=True, max_length=64)["input_ids"] for text in TEXTS]
    expected = unit(
        own[-1].mean(0) @ head["linear.weight"].T + head["linear.bias"]
        for own in states(tmp_path, rows, bidirectional=True)
    )
    check(
        record_property,
        "stella-1.5b",
        tmp_path,
        "mean and its linear layer, each text alone",
        expected,
        changes={"dims": [16, 48], "default_dims": 48},
        role="sts",
        dims=dims,
    )


def test_embeddinggemma(tmp_path: Path, record_property: Record) -> None:
    checkpoints.tiny_decoder(tmp_path, kind="gemma3", use_bidirectional_attention=True, sliding_window=16, layers=2)
    checkpoints.save_dense(tmp_path / "2_Dense", (32, 128), torch.nn.Identity(), False, seed=1)
    checkpoints.save_dense(tmp_path / "3_Dense", (128, 32), torch.nn.Identity(), False, seed=2)
    checkpoints.sentence_transformers_layout(tmp_path, 32, "mean", True, 64, dense=["2_Dense", "3_Dense"])
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    for role, prompt in (("query", "task: search result | query: "), ("document", "title: none | text: ")):
        expected_ND = model.encode(TEXTS, prompt=prompt, convert_to_numpy=True)
        check(
            record_property,
            "embeddinggemma-300m",
            tmp_path,
            "sentence-transformers",
            expected_ND,
            changes={"dims": [16, 32]},
            role=role,
        )
