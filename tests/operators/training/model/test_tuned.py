"""What of a trunk is trained, in which precision, and what is left of it in the model's folder."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import embedder_spec
from operators.errors import InputError
from operators.training.config.tuning import Lora, Tuning
from operators.training.model.encoder import Encoder, Reader
from operators.training.model.export import export
from tests.checkpoints import WORDS, tiny_bert, tiny_decoder

RECIPES = Path("configs/models")
HALF = Tuning(precision="bfloat16", dropout=0.0, attention_dropout=0.0)
HALF_LORA = HALF.model_copy(update={"lora": Lora(rank=4, dropout=0.0)})


@pytest.fixture(params=["encoder", "decoder"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "encoder":
        return tiny_bert(tmp_path / "checkpoint", hidden=64)
    folder = tiny_decoder(tmp_path / "checkpoint", hidden=64)
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


NF4 = HALF.model_copy(update={"lora": Lora(rank=4, dropout=0.0, quantized="nf4")})
# of the paper's appendix E
NF4_LEVELS = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra qlora: bitsandbytes"
)


def nearest_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight at the levels of the paper in blocks of 64, and how far double quantisation moves it at most."""
    blocks = weight.float().reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    levels = (blocks / largest)[..., None].sub(NF4_LEVELS).abs().argmin(dim=-1)
    return (NF4_LEVELS[levels] * largest).view_as(weight), (largest * 0.05).expand_as(blocks).reshape(weight.shape)


@needs_bitsandbytes
def test_frozen_weights_of_4_bits_are_the_papers(model: Path, tmp_path: Path) -> None:
    whole, reader = load(model, HALF_LORA)
    encoder, _ = load(model, NF4)
    kinds = {(one.dtype, one.requires_grad) for one in encoder.parameters()}
    assert kinds == {(torch.bfloat16, False), (torch.uint8, False), (torch.float32, True)}
    expected = {
        name.removeprefix("base_model.model."): layer.base_layer.weight.detach()
        for name, layer in whole.trunk.named_modules()
        if hasattr(layer, "lora_A")
    }
    before = vectors_of(encoder, reader).detach()
    export(encoder, tmp_path / "model")
    found = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    for name, weight in expected.items():
        nearest, most = nearest_nf4(weight)
        assert ((found[f"{name}.weight"] - nearest).abs() <= most + 1e-6).float().mean() > 0.99, name
    exported, reader = load(tmp_path / "model", HALF)
    torch.testing.assert_close(vectors_of(exported, reader).detach(), before, rtol=0, atol=0.03)


@needs_bitsandbytes
def test_adapters_beside_4_bits_are_trained_and_kept(model: Path, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        encoder, reader = load(model, NF4.model_copy(update={"gradient_checkpointing": checkpointing}))
        optimizer = torch.optim.AdamW(encoder.trained().values(), lr=1e-2)
        losses = []
        for _ in range(4):
            loss = (vectors_of(encoder, reader) @ vectors_of(encoder, reader, 2).T).diagonal().mean().neg()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        found.append(losses)
    assert found[0] == found[1]
    assert losses[-1] < losses[0] - 0.05
    after = vectors_of(encoder, reader).detach()
    export(encoder, tmp_path / "model")
    exported, reader = load(tmp_path / "model", HALF)
    torch.testing.assert_close(vectors_of(exported, reader).detach(), after, rtol=0, atol=0.03)


@needs_bitsandbytes
def test_blocks_of_weights_are_not_cut_by_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leave out tuning.lora.quantized: .* has 32 inputs, no multiple of 64"):
        load(tiny_bert(tmp_path / "model", hidden=32), NF4)


def test_the_extra_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="install the extra"):
        load(tiny_bert(tmp_path / "model"), NF4)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"lora": {"quantized": "nf4"}, "precision": "float32"}, "set precision to bfloat16"),
        ({"lora": {"quantized": "nf4"}, "precision": "bfloat16", "sharding": "fsdp2"}, "set sharding to none"),
    ],
)
def test_4_bits_go_with_bfloat16_and_whole_models(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        Tuning.model_validate(settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lora", [None, Lora(rank=4, dropout=0.0)], ids=["whole", "lora"])
def test_a_gpu_trains_as_a_cpu_does(model: Path, lora: Lora | None) -> None:
    spec = embedder_spec(str(model), EmbedderConfig(), RECIPES)
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        encoder = Encoder(spec, HALF.model_copy(update={"lora": lora}), torch.device(device))
        reader = Reader({"document": spec})
        with encoder.casts_shared():
            vectors_BD = vectors_of(encoder, reader)
            vectors_BD[:, 0].sum().backward()
        gradients = [one.grad.flatten().cpu() for one in encoder.trained().values() if one.grad is not None]
        found.append((vectors_BD.detach().cpu(), torch.cat(gradients)))
    (vectors_cpu, gradients_cpu), (vectors_gpu, gradients_gpu) = found
    torch.testing.assert_close(vectors_gpu, vectors_cpu, rtol=0, atol=0.03)
    assert torch.nn.functional.cosine_similarity(gradients_gpu, gradients_cpu, dim=0) > 0.99
