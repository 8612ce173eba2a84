"""Cross-encoders as teachers, against sentence_transformers.CrossEncoder and transformers' own truncation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder
from tokenizers import processors

from operators.errors import InputError
from operators.teachers.choice import load_reader
from operators.teachers.cross_encoder import longest_first
from tests.checkpoints import tiny_bert, tiny_decoder, tiny_encoder, wordpiece_tokenizer
from tests.operators.teachers.rows import ROWS, said, spec_of, table, teacher_of, text

PAIRS = [(query, document) for query, documents in ROWS for document in documents]
AUTO = transformers.AutoModelForSequenceClassification


def classifier(folder: Path, num_labels: int, kind: str = "bert") -> Path:
    """A tiny classifier of pairs."""
    if kind == "bert":
        tiny_bert(folder)
        (folder / "modules.json").unlink()  # a cross-encoder's folder has none
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    elif kind == "qwen2":
        tiny_decoder(folder, kind="qwen2")
    else:
        tiny_encoder(folder, kind="roberta")
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        tokenizer.save_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_labels = num_labels
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AUTO.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def theirs(folder: Path, pairs: list[tuple[str, str]], **options: Any) -> np.ndarray:
    """logits_P or logits_PC."""
    model = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity(), **options)
    return np.asarray(model.predict(pairs, show_progress_bar=False))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_scores_are_the_logits_of_sentence_transformers(kind: str, tmp_path: Path) -> None:
    folder = classifier(tmp_path / kind, 1, kind)
    for max_tokens in (None, 24):  # nothing is cut; most pairs are
        fields = {"checkpoint": str(folder), "max_tokens": max_tokens, "batch_tokens": 256}
        spec = spec_of(teacher_of(kind="cross_encoder", **fields))
        limit = {"max_length": max_tokens} if max_tokens else {}
        expected = theirs(folder, PAIRS, **limit).reshape(len(ROWS), 3)
        outputs = said(spec, ROWS)
        np.testing.assert_allclose(outputs.values, expected, atol=2e-5)
        assert outputs.num_inputs == len(set(PAIRS))


def test_the_score_of_one_of_several_labels_is_its_log_odds(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "bert", 3)
    logits_PC = theirs(folder, PAIRS).astype(np.float64)
    shares_PC = np.exp(logits_PC) / np.exp(logits_PC).sum(axis=1, keepdims=True)
    expected = np.log(shares_PC[:, 2] / (1 - shares_PC[:, 2])).reshape(len(ROWS), 3)
    for label in (2, "LABEL_2"):
        spec = spec_of(teacher_of(kind="cross_encoder", checkpoint=str(folder), label=label))
        np.testing.assert_allclose(said(spec, ROWS).values, expected, rtol=1e-4, atol=1e-4)


def test_a_decoder_classifies_at_the_last_token_of_each_pair(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "qwen2", 1, "qwen2")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(folder)
    spec = spec_of(teacher_of(kind="cross_encoder", checkpoint=str(folder)))
    model = AUTO.from_pretrained(folder).eval()
    options = {"return_tensors": "pt", "return_token_type_ids": False, "truncation": "longest_first", "max_length": 128}
    with torch.inference_mode():
        alone = [float(model(**tokenizer(*pair, **options)).logits) for pair in PAIRS]
    np.testing.assert_allclose(said(spec, ROWS).values.reshape(-1), alone, atol=2e-5)


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(8, 30))
def test_pairs_are_cut_as_the_tokenizers_library_does(first: int, second: int, max_tokens: int) -> None:
    backend = wordpiece_tokenizer()
    backend.enable_truncation(max_tokens, strategy="longest_first")
    encoded = backend.encode("the " * first, "book " * second)
    kept = [sum(place == number for place in encoded.sequence_ids) for number in (0, 1)]
    found = longest_first(np.array([first]), np.array([second]), max_tokens - 3)
    assert found.tolist() == [kept]


def test_long_texts_are_cut_without_reading_them_whole(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "bert", 1)
    rows = [("the book", [" ".join(text(i, 90) for i in range(400)), text(5), text(6)])]
    spec = spec_of(teacher_of(kind="cross_encoder", checkpoint=str(folder), max_tokens=32))
    inputs = load_reader(spec)(table(rows))
    expected = transformers.AutoTokenizer.from_pretrained(folder)(
        rows[0][0], rows[0][1][0], truncation="longest_first", max_length=32
    )
    place = int(inputs.places_RI[0, 0])
    assert inputs.input_ids[place].as_py() == expected["input_ids"]
    assert inputs.type_ids is not None
    assert inputs.type_ids[place].as_py() == expected["token_type_ids"]


def test_what_cannot_be_a_cross_encoder_is_refused(tmp_path: Path) -> None:
    three = classifier(tmp_path / "three", 3)
    with pytest.raises(InputError, match=r"set label of the teacher 't' to one of 0 \(LABEL_0\), 1 .*; it is None"):
        spec_of(teacher_of(kind="cross_encoder", checkpoint=str(three)))
    with pytest.raises(InputError, match="max_tokens 1000 is more than the 512 positions"):
        spec_of(teacher_of(kind="cross_encoder", checkpoint=str(three), label=1, max_tokens=1000))
    trunk = tiny_bert(tmp_path / "trunk")
    config = json.loads((trunk / "config.json").read_text())
    (trunk / "config.json").write_text(json.dumps({**config, "id2label": {"0": "LABEL_0"}}))
    with pytest.raises(InputError, match="is incomplete: .* weights are missing and would be random: classifier"):
        said(spec_of(teacher_of(kind="cross_encoder", checkpoint=str(trunk))), ROWS)
    spec = spec_of(teacher_of(kind="cross_encoder", checkpoint=str(three), label=1))
    (three / "tokenizer.json").write_bytes((three / "tokenizer.json").read_bytes() + b" ")
    with pytest.raises(InputError, match="is not the one that the run was planned with"):
        load_reader(spec)


def test_a_row_without_a_score_is_found(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "bert", 1)
    spec = spec_of(teacher_of(kind="cross_encoder", checkpoint=str(folder)))
    assert said(spec, ROWS).first_bad_row() is None
    model = AUTO.from_pretrained(folder)
    word = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("q")
    model.get_input_embeddings().weight.data[word] = float("nan")
    model.save_pretrained(folder)
    rows = [*ROWS[:4], ("q", ROWS[4][1]), *ROWS[5:]]
    outputs = said(spec_of(teacher_of(kind="cross_encoder", checkpoint=str(folder))), rows)
    assert outputs.first_bad_row() == 4
    assert pa.array(np.isnan(outputs.values).any(axis=1)).sum().as_py() == 1
