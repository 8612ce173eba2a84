"""Folders of the sentence-transformers layout, generated: our vectors are those of sentence-transformers itself.

EMBEDFLEET_FOLDERS says how many; a dozen without it.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.embedder.recipe.files import load_recipe
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.errors import InputError
from tests import checkpoints
from tests.operators.embedder.references import RECIPES, TEXTS, embed

FOLDERS = int(os.environ.get("EMBEDFLEET_FOLDERS", "12"))
TEXT_LENGTHS = TEXTS[:8]
_lengths = st.none() | st.integers(24, 60)
_prompt = st.sampled_from(["", "q: ", "passage: ", "the text of "])


@st.composite
def _folders(draw: Any) -> dict[str, Any]:
    return {
        "pooling": draw(st.sampled_from(["mean", "cls", "last", "weighted_mean", "no mode"])),
        "include_prompt": draw(st.booleans()),
        "normalize": draw(st.booleans()),
        "dense": draw(st.booleans()),
        "seed": draw(st.integers(0, 5)),
        "max_seq_length": draw(_lengths),
        "query_length": draw(_lengths),
        "document_length": draw(_lengths),
        "text_length": draw(st.none() | st.none() | st.integers(24, 60)),
        "tokenizer_length": draw(st.integers(24, 64)),
        "side": draw(st.sampled_from([None, "left", "right"])),
        "side_of_file": draw(st.sampled_from([None, "Left", "Right"])),
        "settings_file": draw(st.sampled_from(["bert", "bert", "roberta", "xlnet"])),
        "prompts": draw(st.dictionaries(st.sampled_from(["query", "document", "sts"]), _prompt)),
        "truncate_dim": draw(st.sampled_from([None, None, 7, 100])),
        "similarity": draw(st.sampled_from([None, "cosine", "dot", "euclidean", "manhattan"])),
        "role": draw(st.sampled_from(["query", "document"])),
    }


def _edit(path: Path, **changes: object) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **changes}))


def _write(folder: Path, facts: dict[str, Any]) -> None:
    checkpoints.tiny_bert(folder, max_tokens=facts["tokenizer_length"], seed=facts["seed"])
    _edit(folder / "tokenizer_config.json", cls_token="[CLS]", sep_token="[SEP]")  # as published ones name them
    dense = ["2_Dense"] if facts["dense"] else []
    if dense:
        checkpoints.save_dense(folder / "2_Dense", (32, 24), torch.nn.Tanh(), True, facts["seed"])
    checkpoints.sentence_transformers_layout(folder, 32, facts["pooling"], facts["normalize"], dense=dense)
    _edit(folder / "1_Pooling" / "config.json", include_prompt=facts["include_prompt"])
    (folder / "sentence_bert_config.json").unlink()
    text = {"max_length": facts["text_length"]} if facts["text_length"] else {}
    _edit(
        folder / f"sentence_{facts['settings_file']}_config.json",
        **{key: facts[key] for key in ("max_seq_length", "query_length", "document_length")},
        processing_kwargs={"text": text},
        unpad_inputs=False,
    )
    if facts["side"]:
        _edit(folder / "tokenizer_config.json", truncation_side=facts["side"])
    if facts["side_of_file"]:
        truncation = {"direction": facts["side_of_file"], "max_length": 50, "strategy": "LongestFirst", "stride": 0}
        _edit(folder / "tokenizer.json", truncation=truncation)
    _edit(
        folder / "config_sentence_transformers.json",
        prompts=facts["prompts"],
        truncate_dim=facts["truncate_dim"],
        similarity_fn_name=facts["similarity"],
    )


@settings(max_examples=FOLDERS, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(facts=_folders())
@pytest.mark.timeout(0 if FOLDERS > 100 else 300)
def test_a_folder_embeds_as_sentence_transformers_does(facts: dict[str, Any]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name) / "model"
        _write(folder, facts)
        theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        encode = theirs.encode_query if facts["role"] == "query" else theirs.encode_document
        expected_ND = encode(TEXT_LENGTHS, convert_to_numpy=True)
        found_ND = embed(str(folder), TEXT_LENGTHS, role=facts["role"])
        if facts["normalize"] and facts["truncate_dim"]:  # cut vectors are scaled to length 1 here
            expected_ND = expected_ND / np.linalg.norm(expected_ND, axis=1, keepdims=True)
        np.testing.assert_allclose(found_ND, expected_ND, atol=1e-4)
        assert load_recipe(str(folder), RECIPES).similarity == theirs.similarity_fn_name


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task: 'fill-mask'"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, "query_expansion: "),
        ("sentence_bert_config.json", {"something": 1}, "something: 1, which is not supported"),
        ("sentence_bert_config.json", {"model_args": {"revision": "a"}}, "model_args has revision"),
        ("sentence_bert_config.json", {"config_kwargs": {"num_hidden_layers": 1}}, "config_kwargs has num_hidden_l"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"truncation": False}}},
            "processing_kwargs.text has truncation: False",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"message": {"method": "forward"}}},
            "modality_config.text has text: 'missing'",
        ),
        ("1_Pooling/config.json", {"weights": [1]}, r"weights: \[1\]"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type: 'SparseEncoder'"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "max"}, "known are cosine, dot"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "none of its prompts"),
    ],
)
def test_keys_that_would_change_vectors_are_refused_by_name(
    tmp_path: Path, path: str, changes: dict[str, Any], message: str
) -> None:
    folder = checkpoints.tiny_bert(tmp_path / "bert")
    _edit(folder / path, **changes)
    with pytest.raises(InputError, match=message):
        load_recipe(str(folder), RECIPES)


def test_a_module_with_code_of_its_own_is_not_taken_for_ours(tmp_path: Path) -> None:
    folder = checkpoints.tiny_bert(tmp_path / "bert")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom_st.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=r"a custom_st\.Transformer module"):
        load_recipe(str(folder), RECIPES)


def test_what_changes_vectors_changes_the_fingerprint_and_nothing_else(tmp_path: Path) -> None:
    folder = checkpoints.tiny_bert(tmp_path / "bert", max_tokens=40)
    settings_file = folder / "sentence_bert_config.json"

    def fingerprint(role: str) -> str:
        return embedder_spec(str(folder), EmbedderConfig(role=role), RECIPES).fingerprint

    before = {role: fingerprint(role) for role in ("document", "query")}
    _edit(settings_file, document_length=20)
    assert fingerprint("query") == before["query"]
    assert fingerprint("document") != before["document"]
    _edit(settings_file, document_length=None, tokenizer_args={"truncation_side": "left"})
    assert fingerprint("query") != before["query"]
    _edit(settings_file, tokenizer_args={})
    _edit(folder / "config_sentence_transformers.json", similarity_fn_name="dot")
    assert {role: fingerprint(role) for role in before} == before


def test_an_empty_prompt_that_hides_another_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = {"document": "", "passage": "passage: "}
    folder = checkpoints.tiny_bert(tmp_path / "bert", prompts=prompts)
    with caplog.at_level(logging.WARNING):
        recipe = load_recipe(str(folder), RECIPES)
    assert recipe.prompts == prompts
    assert "set embedder.role=passage for its prompt 'passage: '" in caplog.text
