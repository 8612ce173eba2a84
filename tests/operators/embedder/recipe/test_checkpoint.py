"""Checkpoints that a worker has to refuse: incomplete, not fitting, pickled; each would else give random vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from operators.embedder.model.loading import load_model
from operators.embedder.recipe.recipe import Recipe
from operators.errors import InputError
from tests import checkpoints

Weights = dict[str, torch.Tensor]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(folder, dtype, Recipe(checkpoint=str(folder), pooling="mean", normalize=True, max_tokens=9))


def edit_weights(folder: Path, edit: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    weights = edit({name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()})
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


def test_a_checkpoint_comes_whole_in_its_dtype_and_without_pooler(tmp_path: Path) -> None:
    model = load(checkpoints.tiny_bert(tmp_path), torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.pooler is None
    assert not model.training


def test_a_missing_pooler_is_no_fault(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    edit_weights(tmp_path, lambda weights: {name: w for name, w in weights.items() if not name.startswith("pooler")})
    assert load(tmp_path).pooler is None


def test_weights_of_a_whole_language_model_load_into_its_trunk(tmp_path: Path) -> None:
    checkpoints.tiny_decoder(tmp_path, kind="mistral")
    before = load(tmp_path).norm.weight
    edit_weights(
        tmp_path,
        lambda weights: {f"model.{name}": w for name, w in weights.items()} | {"lm_head.weight": torch.ones(2)},
    )
    assert torch.equal(load(tmp_path).norm.weight, before)


def test_sharded_weights(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        part = {name: weights[name] for name in names if weight_map[name] == shard}
        safetensors.torch.save_file(part, tmp_path / shard, metadata={"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    loaded = load(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in names if not name.startswith("pooler"))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    edit_weights(
        tmp_path, lambda weights: {name: w for name, w in weights.items() if "layer.1.output.dense" not in name}
    )
    with pytest.raises(
        InputError, match=r"2 weights are missing and would be random: encoder\.layer\.1\.output\.dense"
    ):
        load(tmp_path)


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"vocab_size": 50}, {"intermediate_size": 7}])
def test_weights_of_other_shapes_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    checkpoints.tiny_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=r"cannot load .*"):
        load(tmp_path)


def test_pickled_weights_are_refused_and_not_opened(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has only pickled weights \(pytorch_model\.bin\).*convert them"):
        load(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load"):
        load(tmp_path)


def test_unknown_model_type_is_refused(tmp_path: Path) -> None:
    checkpoints.tiny_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    with pytest.raises(InputError, match=r"cannot load .*unheard_of"):
        load(tmp_path)
