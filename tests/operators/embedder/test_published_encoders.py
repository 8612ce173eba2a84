"""Published encoders against sentence-transformers, or each text alone through plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import torch
import transformers
import yaml

from operators.embedder.model import fast_bert
from tests import checkpoints
from tests.operators.embedder.references import (
    RECIPES,
    TEXTS,
    Record,
    check,
    compare,
    embed,
    states,
    tokenizer_of,
    unit,
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bert-base", "bert"),
        ("roberta-base", "roberta"),
        ("xlm-roberta-base", "xlm-roberta"),
        ("all-mpnet-base-v2", "mpnet"),
        ("simcse-unsup-bert-base", "bert"),
        ("e5-base", "bert"),
        ("multilingual-e5-base", "xlm-roberta"),
        ("bge-base", "bert"),
        ("bge-m3-dense", "xlm-roberta"),
        ("modernbert-embed-base", "modernbert"),
    ],
)
def test_encoders(tmp_path: Path, name: str, kind: Any, record_property: Record) -> None:
    if kind == "bert":
        checkpoints.tiny_bert(tmp_path)
    else:
        checkpoints.tiny_encoder(tmp_path, kind=kind)
    fields = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    prompts = fields.get("prompts", {})
    checkpoints.sentence_transformers_layout(tmp_path, 32, fields["pooling"], True, 64, prompts)
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    for role in ("query", "document"):
        expected_ND = model.encode(TEXTS, prompt=prompts.get(role, ""), convert_to_numpy=True)
        packs = kind != "mpnet"  # its attention has a bias for places, which only its own code computes
        check(record_property, name, tmp_path, "sentence-transformers", expected_ND, packs=packs, role=role)


@pytest.mark.parametrize("fast", [True, False])
def test_minilm(fast: bool, monkeypatch: pytest.MonkeyPatch, record_property: Record) -> None:
    """The published weights, with the fast path and without; more of it is tested with the engine."""
    if not fast:
        monkeypatch.setattr(fast_bert, "supports", lambda *_: False)
    model = sentence_transformers.SentenceTransformer(str(checkpoints.minilm_folder()), device="cpu")
    expected_ND = model.encode(TEXTS, convert_to_numpy=True)
    for packing in (False, True):
        found_ND = embed("minilm", TEXTS, packing=packing)
        compare(record_property, "minilm", "sentence-transformers", found_ND, expected_ND)


def test_first_and_last_layer(tmp_path: Path, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_bert(tmp_path, layers=3))
    rows = [tokenizer(text, truncation=True, max_length=64)["input_ids"] for text in TEXTS]
    expected = unit((own[1] + own[-1]).mean(0) / 2 for own in states(tmp_path, rows))
    check(record_property, "bert-base-first-last", tmp_path, "SimCSE's formula, each text alone", expected)


def test_supervised_simcse(tmp_path: Path, record_property: Record) -> None:
    tokenizer = tokenizer_of(checkpoints.tiny_bert(tmp_path))
    model = transformers.BertModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        inputs = [tokenizer(text, truncation=True, max_length=64, return_tensors="pt") for text in TEXTS]
        expected = unit(model(**own).pooler_output[0] for own in inputs)
    check(record_property, "simcse-sup-bert-base", tmp_path, "BertModel's pooler_output, each text alone", expected)
