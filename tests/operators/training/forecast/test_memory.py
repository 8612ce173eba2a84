"""The memory of a training on paper against what torch really holds, of small models on the CPU."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import peft
import pytest
import torch
import transformers
from torch.autograd.graph import saved_tensors_hooks

from operators.training.forecast.memory import Memory, block_activations, memory
from operators.training.forecast.method import Load, Method
from operators.training.forecast.shape import ModelShape
from operators.training.steps.optimization import Optimization, make_optimizer

Kind = Literal["bert", "mistral", "qwen3"]
LENGTH, TEXTS = 64, 8
LOAD = Load(rows=TEXTS // 2, query_tokens=LENGTH, document_tokens=LENGTH, dim=64, tokens=4096)


def config_of(kind: Kind, layers: int = 3, dropout: float = 0.0) -> transformers.PreTrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    if kind == "bert":
        return transformers.BertConfig(
            **common, intermediate_size=256, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0
        )
    decoder = {"mistral": transformers.MistralConfig, "qwen3": transformers.Qwen3Config}[kind]
    return decoder(**common, num_key_value_heads=2, head_dim=16, intermediate_size=224, use_cache=False)


def model_of(kind: Kind, method: Method, layers: int = 3) -> torch.nn.Module:
    """The model as `method` says, to be trained."""
    model = transformers.AutoModel.from_config(config_of(kind, layers, 0.1 if method.dropout else 0.0))
    if kind == "bert":
        model.pooler = None
    model = model.to(torch.bfloat16 if method.stream_bytes == 2 else torch.float32)
    if method.checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if method.rank is None:
        return model.train()
    dropout = 0.1 if method.adapter_dropout else 0.0
    lora = peft.LoraConfig(r=method.rank, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", bias="none")
    tuned = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    if method.checkpointing:
        model.enable_input_require_grads()
    return tuned.train()


def kept_bytes(model: torch.nn.Module, method: Method) -> int:
    """Bytes that autograd keeps of a forward pass, storages counted once, without the model's own parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    ids = torch.randint(5, 90, (TEXTS, LENGTH), generator=torch.Generator().manual_seed(0))
    cast = torch.autocast("cpu", torch.bfloat16) if method.is_autocast else contextlib.nullcontext()
    with saved_tensors_hooks(pack, lambda tensor: tensor), cast:
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert states.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def paper(kind: Kind, method: Method, load: Load = LOAD, num_gpus: int = 1) -> Memory:
    return memory(ModelShape.of_config(config_of(kind)), method, load, num_gpus)


METHODS = {
    "float32": Method(precision="float32"),
    "autocast": Method(),
    "bfloat16": Method(sharded=True),
    "adapters, float32": Method(precision="float32", rank=4, adapter_dropout=False),
    "adapters, autocast": Method(rank=4, adapter_dropout=False),
    "adapters, bfloat16": Method(rank=4, adapter_dropout=False, frozen="bfloat16"),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("kind", ["bert", "mistral", "qwen3"])
def test_activations_are_what_autograd_keeps(kind: Kind, method: Method) -> None:
    found = [kept_bytes(model_of(kind, method, layers), method) for layers in (3, 5)]
    shape, expected = ModelShape.of_config(config_of(kind)), paper(kind, method)
    casts = expected.copies if method.is_autocast else 0
    block = TEXTS * LENGTH * block_activations(shape, method) + casts / 3
    assert block == pytest.approx((found[1] - found[0]) / 2, rel=0.015)
    assert expected.activations + casts == pytest.approx(found[0], rel=0.015)


@pytest.mark.parametrize("kind", ["bert", "mistral"])
@pytest.mark.parametrize("frozen", ["float32", "bfloat16"])
def test_dropout_of_adapters_keeps_an_input_for_each(kind: Kind, frozen: Literal["float32", "bfloat16"]) -> None:
    precision: Literal["float32", "bfloat16"] = "float32" if frozen == "float32" else "bfloat16"
    method = Method(precision=precision, rank=4, frozen=frozen)
    found = [kept_bytes(model_of(kind, method, layers), method) for layers in (3, 5)]
    shape = ModelShape.of_config(config_of(kind))
    # the CPU's masks have numbers where a GPU's have bytes
    masks = TEXTS * LENGTH * sum(inputs for inputs, _ in shape.linears) * (method.compute_bytes - 1)
    block = TEXTS * LENGTH * block_activations(shape, method)
    assert block == pytest.approx((found[1] - found[0]) / 2 - masks, rel=0.015)


@pytest.mark.parametrize("kind", ["bert", "mistral"])
@pytest.mark.parametrize("sharded", [False, True], ids=["float32", "bfloat16"])
def test_checkpointing_keeps_the_input_of_each_block(kind: Kind, sharded: bool) -> None:
    precision: Literal["float32", "bfloat16"] = "bfloat16" if sharded else "float32"
    method = Method(precision=precision, sharded=sharded, checkpointing=True)
    found = kept_bytes(model_of(kind, method), method)
    assert paper(kind, method).activations == pytest.approx(found, rel=0.05)


def test_a_block_of_bert_in_16_bits_keeps_34_bytes_a_number_as_published() -> None:
    shape = ModelShape.of_config(config_of("bert"))
    flash = 4 * shape.heads  # which keeps one number a head, in place of the published 5 a s / h
    assert block_activations(shape, Method(sharded=True, dropout=True)) == 34 * shape.hidden + flash


@pytest.mark.parametrize("rank", [None, 4])
def test_parameters_gradients_and_moments_are_exact(rank: int | None) -> None:
    method = Method(precision="float32", rank=rank)
    model = model_of("mistral", method)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = make_optimizer(trained, Optimization())
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).last_hidden_state.sum().backward()
    for parameter in trained.values():  # a weight that this pass did not reach has one in a real step
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    expected = paper("mistral", method)
    assert expected.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert expected.gradients == sum(
        parameter.grad.nbytes for parameter in trained.values() if parameter.grad is not None
    )
    assert expected.moments == sum(value.nbytes for value in moments)


def test_shards_of_64_gpus_hold_what_zero_publishes() -> None:
    # figure 1 of arXiv 1910.02054: 7.5 B parameters, 120 GB whole, 1.9 GB in 64 shards
    config = config_of("mistral")
    config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.head_dim = 4096, 36, 14336, 128
    config.num_attention_heads, config.num_key_value_heads, config.vocab_size = 32, 8, 1000
    shape = ModelShape.of_config(config)
    scale = 7.5e9 / shape.num_parameters
    for method, num_gpus, published in ((Method(), 1, 120e9), (Method(sharded=True), 64, 1.9e9)):
        state = memory(shape, method, LOAD, num_gpus)
        assert scale * (state.weights + state.gradients + state.moments) == pytest.approx(published, rel=0.02)


def test_memory_does_not_grow_with_the_batch_beyond_the_tokens_held() -> None:
    loads = [Load(rows=rows, query_tokens=32, document_tokens=128, dim=64, tokens=8192) for rows in (256, 16384)]
    small, large = (paper("mistral", Method(), load, 1) for load in loads)
    assert small.activations == large.activations
    assert large.total - large.representations == pytest.approx(small.total - small.representations, rel=0.05)


def test_nf4_weights_take_four_bits_and_an_eighth() -> None:
    method = Method(rank=4, frozen="nf4")
    shape = ModelShape.of_config(config_of("mistral"))
    linear = shape.layers * shape.block_linear_parameters
    others = 2 * (shape.num_parameters - linear)
    adapters = 4 * shape.adapter_parameters(4)
    assert (paper("mistral", method).weights - others - adapters) * 8 / linear == pytest.approx(4.127, abs=1e-3)
