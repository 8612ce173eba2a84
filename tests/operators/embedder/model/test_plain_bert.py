"""BERT in numpy against transformers' own, and which checkpoints are taken for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from operators.embedder.model.bert_weights import (
    bert_shape,
    bert_weights,
    map_file,
    read_bert,
    read_tensors,
)
from operators.embedder.model.plain_bert import PlainBert, pooled

CLASSES = {
    "bert": (transformers.BertConfig, transformers.BertModel),
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
    "camembert": (transformers.CamembertConfig, transformers.CamembertModel),
}
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 70,
}


def random_model(family: str, **changes: Any) -> transformers.PreTrainedModel:
    config_class, model_class = CLASSES[family]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: transformers.PreTrainedModel = model_class(config_class(**{**SIZES, **changes})).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return model


def changed(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@torch.inference_mode()
def states_of(model: transformers.PreTrainedModel, ids_L: np.ndarray) -> np.ndarray:
    states_1LD: torch.Tensor = model(input_ids=torch.from_numpy(ids_L)[None]).last_hidden_state
    return states_1LD[0].numpy()


@pytest.mark.parametrize("family", CLASSES)
def test_states_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = random_model(family, layer_norm_eps=1e-5)
    model.save_pretrained(tmp_path)
    weights = read_bert(tmp_path)
    assert weights is not None
    plain = PlainBert(weights)
    for length in (1, 2, 17, 64):
        ids_L = np.random.default_rng(length).integers(
            0, 97, length
        )  # ids of padding too: RoBERTa's positions skip them
        assert np.abs(plain(ids_L) - states_of(model, ids_L)).max() <= 2e-5


@given(
    family=st.sampled_from(sorted(CLASSES)),
    heads=st.integers(1, 4),
    head_width=st.integers(1, 9),
    layers=st.integers(1, 3),
    inner=st.integers(1, 50),
    length=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_any_shape_gives_the_states_of_transformers(
    family: str, heads: int, head_width: int, layers: int, inner: int, length: int, seed: int
) -> None:
    width = heads * head_width
    model = random_model(
        family,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=inner,
        layer_norm_eps=1e-3,  # widths of one or two numbers have next to no variance, whose noise a small one magnifies
    )
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    weights = bert_weights(model.config.to_dict() | _saved_keys(model), tensors)
    assert weights is not None
    ids_L = np.random.default_rng(seed).integers(0, 97, length)
    assert np.abs(PlainBert(weights)(ids_L) - states_of(model, ids_L)).max() <= 1e-3
    parameters = sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("pooler"))
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding))
    assert weights.shape.flops_per_token == 2 * (parameters - tables)


def _saved_keys(model: transformers.PreTrainedModel) -> dict[str, Any]:
    """What a saved config has of these keys: `to_dict` also gives what only a loaded one knows."""
    return json.loads(model.config.to_json_string(use_diff=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_transformers_reads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    random_model("bert").to(dtype).save_pretrained(tmp_path)
    model = transformers.BertModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    weights = read_bert(tmp_path)
    assert weights is not None
    ids_L = np.arange(1, 30)
    assert np.abs(PlainBert(weights)(ids_L) - states_of(model, ids_L)).max() <= 1e-4


def test_the_encoder_of_a_larger_model_is_found(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).eval()
    model.save_pretrained(tmp_path)
    weights = read_bert(tmp_path)
    assert weights is not None
    ids_L = np.arange(5, 20)
    assert np.abs(PlainBert(weights)(ids_L) - states_of(model.bert, ids_L)).max() <= 1e-5


def test_names_of_the_first_checkpoints_are_understood(tmp_path: Path) -> None:
    model = random_model("bert")
    model.save_pretrained(tmp_path)
    expected = read_bert(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    renamed = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    renamed["bert.embeddings.position_ids"] = torch.arange(70)[None]
    renamed["cls.seq_relationship.bias"] = torch.zeros(2)
    save_file(renamed, path, {"format": "pt"})
    found = read_bert(tmp_path)
    assert expected is not None
    assert found is not None
    ids_L = np.arange(9)
    assert np.array_equal(PlainBert(found)(ids_L), PlainBert(expected)(ids_L))


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"embedding_size": 12},  # factorised embeddings
        {"pruned_heads": {"0": [1]}},
        {"quantization_config": {"bits": 8}},
        {"auto_map": {"AutoModel": "modeling.Own"}},
        {"rotary": True},
        {"layer_norm_eps": None},
        {"num_attention_heads": 5},
        {"num_hidden_layers": 3},  # one layer's weights are missing
        {"num_hidden_layers": 1},  # one layer's weights are left over
        {"vocab_size": 96},
        {"model_type": "mpnet"},
    ],
)
def test_what_may_be_another_architecture_is_left_to_transformers(values: dict[str, Any], tmp_path: Path) -> None:
    random_model("bert").save_pretrained(tmp_path)
    assert read_bert(tmp_path) is not None
    assert read_bert(changed(tmp_path, **values)) is None


def test_a_roberta_without_padding_is_left_to_transformers() -> None:
    config = transformers.RobertaConfig(**SIZES)
    values = {**_config(config), "pad_token_id": 1}
    assert bert_shape(values) is not None
    assert bert_shape({**values, "pad_token_id": None}) is None


def _config(config: transformers.PreTrainedConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return found


def test_tensors_of_float32_are_mapped_and_never_written(tmp_path: Path) -> None:
    random_model("bert").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    before = path.read_bytes()
    tensors = read_tensors([map_file(path)])
    assert tensors is not None
    table = tensors["embeddings.word_embeddings.weight"]
    assert np.array_equal(table, load_file(path)["embeddings.word_embeddings.weight"].numpy())
    table[0] = 7
    assert path.read_bytes() == before


def test_released_weights_are_mapped_again(tmp_path: Path) -> None:
    random_model("bert").save_pretrained(tmp_path)
    weights = read_bert(tmp_path)
    assert weights is not None
    plain, ids_L = PlainBert(weights), np.arange(3, 30)
    before = plain(ids_L)
    weights.release()
    assert np.array_equal(plain(ids_L), before)


def test_other_kinds_of_numbers_are_left_to_transformers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"embeddings.word_embeddings.weight": torch.zeros(4, 4, dtype=torch.int8)}, path)
    assert read_tensors([map_file(path)]) is None


def test_pooling() -> None:
    states_LD = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert pooled(states_LD, "cls").tolist() == [0, 1, 2]
    assert pooled(states_LD, "last").tolist() == [9, 10, 11]
    assert pooled(states_LD, "mean").tolist() == [4.5, 5.5, 6.5]
