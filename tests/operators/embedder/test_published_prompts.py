"""Prompting without training against the papers' formulas, each prompt alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml

from tests import checkpoints
from tests.operators.embedder.references import (
    RECIPES,
    TEXTS,
    Record,
    check,
    fitted,
    states,
    tokenizer_of,
)


def sentence(text: str) -> str:
    """What the prompting papers' code does to a sentence first."""
    if text[-1] not in ".?\"'":
        text += "."
    text = text.replace('"', "'")
    return text[:-1] + "." if text[-1] == "?" else text


@pytest.mark.parametrize(
    ("name", "kind", "before"),
    [
        (
            "prompteol-opt-1.3b",
            "opt",
            'This sentence : "A jockey riding a horse." means in one word:"Equestrian".',
        ),
        ("pretended-cot", "llama", "After thinking step by step , "),
        (
            "knowledge-enhancement",
            "llama",
            "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms "
            "provide additional but less central details. With this in mind , ",
        ),
    ],
)
def test_one_word(tmp_path: Path, name: str, kind: Any, before: str, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind=kind, max_tokens=512))
    texts = [*TEXTS, "Is it?", 'He said "no"']
    prefix = f'{before}{"This" if name.startswith("prompteol") else "this"} sentence : "'
    suffix = '" means in one word:"'
    max_tokens = len(tokenizer(prefix + suffix)["input_ids"]) + 50
    rows = [fitted(tokenizer, prefix, sentence(text), suffix, max_tokens) for text in texts]
    assert max_tokens - 2 <= max(map(len, rows)) <= max_tokens
    expected = np.stack([own[-1][-1] for own in states(tmp_path, rows)])
    check(
        record_property,
        name,
        tmp_path,
        "transformers, each prompt alone, the text cut to fit",
        expected,
        texts,
        changes={"max_tokens": max_tokens},
    )


def test_promptbert(tmp_path: Path, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_bert(tmp_path))
    texts = [*TEXTS, "Is it?", 'He said "no"']
    rows = [fitted(tokenizer, 'This sentence : "', sentence(text), '" means [MASK] .', 60) for text in texts]
    assert max(map(len, rows)) == 60
    expected = np.stack([own[-1][row.index(4)] for own, row in zip(states(tmp_path, rows), rows, strict=True)])
    check(
        record_property,
        "promptbert",
        tmp_path,
        "state of [MASK], each prompt alone, the text cut to fit",
        expected,
        texts,
        changes={"max_tokens": 60},
    )


def test_metaeol(tmp_path: Path, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind="llama", max_tokens=1024))
    prompts = yaml.safe_load((RECIPES / "metaeol-llama-2-7b.yaml").read_text())["prompts"]["document"]
    assert len(prompts) == 8
    max_tokens = max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts) + 40
    by_prompt = []
    for prompt in prompts:
        prefix, suffix = prompt.split("{text}")
        rows = [fitted(tokenizer, prefix, sentence(text), suffix, max_tokens) for text in TEXTS]
        assert max(map(len, rows)) <= max_tokens
        by_prompt.append(np.stack([own[-1][-1] for own in states(tmp_path, rows)]))
    check(
        record_property,
        "metaeol-llama-2-7b",
        tmp_path,
        "mean over the prompts, each alone, the text cut to fit",
        np.mean(by_prompt, axis=0),
        changes={"max_tokens": max_tokens},
    )


def test_token_prepending(tmp_path: Path, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_decoder(tmp_path, kind="llama", max_tokens=256, layers=4))
    tokenizer.add_tokens(["<PST>"])
    placeholder = tokenizer.convert_tokens_to_ids("<PST>")
    model = transformers.LlamaModel.from_pretrained(tmp_path).eval()
    embedding = torch.randn(32, generator=torch.Generator().manual_seed(0))
    expected = []
    with torch.inference_mode():
        for text in TEXTS:
            ids = fitted(tokenizer, 'This sentence : <PST> "', sentence(text), '" means in one word:"', 100)
            slot = ids.index(placeholder)
            hidden = model.embed_tokens(torch.tensor([[0 if token == placeholder else token for token in ids]]))
            hidden[0, slot] = embedding
            positions = torch.arange(len(ids))[None]
            rotary = model.rotary_emb(hidden, positions)
            mask = torch.full((1, 1, len(ids), len(ids)), torch.finfo(torch.float32).min).triu(1)
            for index, layer in enumerate(model.layers[:3]):
                if 1 <= index < 2:
                    hidden[0, slot] = hidden[0, -1]
                output = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
                hidden = output[0] if isinstance(output, tuple) else output
            expected.append(hidden[0, -1].numpy())  # of layer 3, without the last norm
    check(
        record_property,
        "token-prepending-llama-2-7b",
        tmp_path,
        "the layers one by one, each prompt alone, the text cut to fit",
        np.stack(expected),
        changes={"max_tokens": 100, "prepend": {"exit_layer": 2}, "layers": [3]},
        packs=False,  # a state is moved within its row
    )
