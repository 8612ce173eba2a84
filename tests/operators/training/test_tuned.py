"""What of a trunk is trained, in which precision, and what is left of it in the model's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from operators.embedder.recipe import EmbedderConfig
from operators.embedder.spec import embedder_spec
from operators.training.encoder import Encoder, Reader
from operators.training.export import export
from operators.training.tuning import Lora, Tuning
from tests.checkpoints import WORDS, tiny_bert, tiny_decoder

RECIPES = Path("configs/models")
HALF = Tuning(precision="bfloat16", dropout=0.0, attention_dropout=0.0)
HALF_LORA = HALF.model_copy(update={"lora": Lora(rank=4, dropout=0.0)})


@pytest.fixture(params=["encoder", "decoder"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "encoder":
        return tiny_bert(tmp_path / "checkpoint")
    folder = tiny_decoder(tmp_path / "checkpoint")
    recipe = {"checkpoint": str(folder), "pooling": "last", "normalize": True, "max_tokens": 64}
    (tmp_path / "recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()))
    return tmp_path / "recipe.yaml"


def load(model: Path, tuning: Tuning) -> tuple[Encoder, Reader]:
    spec = embedder_spec(str(model), EmbedderConfig(), RECIPES)
    torch.manual_seed(0)  # what LoRA begins with is random
    return Encoder(spec, tuning, torch.device("cpu")), Reader({"document": spec})


def vectors_of(encoder: Encoder, reader: Reader, seed: int = 1) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(8)]
    vectors_BD: torch.Tensor = encoder(reader(texts, ["document"] * 8).batch(np.arange(8)))
    return vectors_BD


def test_what_is_frozen_is_bfloat16_and_adapters_float32(model: Path) -> None:
    encoder, reader = load(model, HALF_LORA)
    kinds = {(parameter.dtype, parameter.requires_grad) for parameter in encoder.parameters()}
    assert kinds == {(torch.bfloat16, False), (torch.float32, True)}
    whole, _ = load(model, HALF_LORA.model_copy(update={"precision": "float32"}))
    cosines = (vectors_of(encoder, reader) * vectors_of(whole, reader)).sum(dim=1)
    assert cosines.min() > 0.99
    vectors_of(encoder, reader)[:, 0].sum().backward()
    assert {parameter.grad.dtype for parameter in encoder.trained().values() if parameter.grad is not None} == {
        torch.float32
    }


def test_all_weights_are_float32_where_all_are_trained(model: Path) -> None:
    encoder, _ = load(model, HALF)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_a_small_update_survives_in_the_folder(model: Path, tmp_path: Path) -> None:
    """Some 1/10,000 of a weight, which bfloat16 rounds away: the folder has it."""
    encoder, _ = load(model, HALF_LORA)
    layers = {name: module for name, module in encoder.trunk.named_modules() if hasattr(module, "lora_A")}
    expected = {}
    with torch.no_grad():
        for name, layer in layers.items():
            torch.nn.init.normal_(layer.lora_A["default"].weight)
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=1e-6)
            update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (32 / 4)
            plain = name.removeprefix("base_model.model.") + ".weight"
            expected[plain] = layer.base_layer.weight.float() + update
            assert (expected[plain].bfloat16() == layer.base_layer.weight).float().mean() > 0.95
    export(encoder, tmp_path / "model")
    found = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    assert len(expected) > 10
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-8, msg=name)


@contextmanager
def halves_kept(encoder: Encoder) -> Iterator[set[int]]:
    """Where the bfloat16 copies of weights lie that are kept for backward while this is open."""
    shapes = {tuple(one.shape) for one in encoder.parameters() if one.ndim == 2}
    shapes |= {shape[::-1] for shape in shapes}
    places: set[int] = set()
    held = []

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)  # else the place of one that is freed is another's
        if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes:
            places.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        yield places


def test_passes_share_one_copy_of_the_weights(model: Path) -> None:
    encoder, reader = load(model, HALF)
    counts, gradients = [], []
    with halves_kept(encoder) as one_pass:
        vectors_of(encoder, reader)
    for shares in (False, True):
        encoder.zero_grad()
        with halves_kept(encoder) as places:
            if shares:
                with encoder.casts_shared():
                    passes = [vectors_of(encoder, reader, seed) for seed in range(3)]
                    for vectors_BD in passes:
                        vectors_BD[:, 0].sum().backward()
            else:
                for vectors_BD in [vectors_of(encoder, reader, seed) for seed in range(3)]:
                    vectors_BD[:, 0].sum().backward()
        counts.append(len(places))
        gradients.append({name: one.grad for name, one in encoder.trained().items() if one.grad is not None})
    assert counts == [3 * len(one_pass), len(one_pass)]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_a_pass_without_gradients_leaves_no_copy_behind(model: Path) -> None:
    """Else a later pass that wants gradients would get a copy without them."""
    encoder, reader = load(model, HALF)
    with encoder.casts_shared():
        with torch.no_grad():
            vectors_of(encoder, reader)
        vectors_of(encoder, reader)[:, 0].sum().backward()
    missing = [name for name, one in encoder.trained().items() if one.grad is None]
    assert not missing
