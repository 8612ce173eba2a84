"""The step's time, and what fits, on paper."""

from __future__ import annotations

import dataclasses

import peft
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from operators.errors import InputError
from operators.training.forecast.accelerators import ACCELERATORS, LINK_SHARE
from operators.training.forecast.forecast import forecast, widest
from operators.training.forecast.memory import memory
from operators.training.forecast.method import Load, Method
from operators.training.forecast.shape import ModelShape
from operators.training.forecast.times import step_flops, step_time

H100 = ACCELERATORS["H100"]
LOAD = Load(rows=1024, query_tokens=64, document_tokens=448, dim=4096, tokens=16384)


def small() -> transformers.PreTrainedConfig:
    return transformers.MistralConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=224,
        use_cache=False,
        attn_implementation="eager",
    )


@pytest.fixture(scope="module")
def mistral_7b() -> ModelShape:
    return ModelShape.of_config(transformers.MistralConfig())  # whose defaults are those of Mistral-7B-v0.1


@pytest.mark.parametrize(
    "method",
    [
        Method(precision="float32"),
        Method(precision="float32", checkpointing=True),
        Method(precision="float32", rank=4, adapter_dropout=False),
    ],
    ids=["full", "checkpointing", "adapters"],
)
def test_flops_are_those_that_torch_counts(method: Method) -> None:
    model = transformers.AutoModel.from_config(small()).train()
    if method.checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    trained: torch.nn.Module = model
    if method.rank is not None:
        trained = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", bias="none"))
    ids = torch.randint(5, 90, (8, 32), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        trained(input_ids=ids).last_hidden_state.sum().backward()
    load = Load(rows=4, query_tokens=32, document_tokens=32, dim=64, tokens=4096)
    # torch computes the last product of a block no second time, and no gradient of what is frozen before the first
    expected = step_flops(ModelShape.of_config(small()), method, load, 1)
    tolerance = 0.005 if method == Method(precision="float32") else 0.07
    assert expected == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_shape_of_mistral_7b_is_the_published_one(mistral_7b: ModelShape) -> None:
    head = 32000 * 4096  # of the language model: 7.24 B with it
    assert mistral_7b.num_parameters + head == 7_241_732_096
    assert (mistral_7b.layers, mistral_7b.query_width, mistral_7b.key_value_width) == (32, 4096, 1024)
    assert mistral_7b.adapter_parameters(16) == 41_943_040  # peft's count of all linear layers at rank 16


def test_gradcache_costs_a_forward_pass_for_what_is_not_held(mistral_7b: ModelShape) -> None:
    method = Method(sharded=True)
    whole = dataclasses.replace(LOAD, tokens=1 << 20)
    half = dataclasses.replace(LOAD, tokens=int(LOAD.step_tokens / 8 / 2))
    flops = [step_flops(mistral_7b, method, load, 8) for load in (whole, half)]
    assert flops[1] / flops[0] == pytest.approx((3 + 0.5) / 3)
    assert flops[0] == pytest.approx(6 * (mistral_7b.num_parameters - 32000 * 4096) * LOAD.step_tokens, rel=0.05)


def test_time_is_that_of_products_and_of_what_travels(mistral_7b: ModelShape) -> None:
    method = Method(rank=16, frozen="bfloat16")
    time = step_time(mistral_7b, method, LOAD, H100, 16, utilization=0.5)
    assert time.products == step_flops(mistral_7b, method, LOAD, 16) / (16 * 989.4e12 * 0.5)
    assert time.gradients == pytest.approx(2 * 15 / 16 * 4 * 41_943_040 / (LINK_SHARE * 8 * 50e9))
    assert time.optimizer == pytest.approx(28 * 41_943_040 / 3.35e12)
    assert time.shards == 0
    assert time.total == pytest.approx(time.products + time.gradients + time.optimizer + time.vectors)


def test_one_gpu_sends_nothing(mistral_7b: ModelShape) -> None:
    for method in (Method(), Method(sharded=True)):
        time = step_time(mistral_7b, method, LOAD, H100, 1)
        assert (time.gradients, time.shards, time.vectors) == (0, 0, 0)


def test_shards_are_gathered_for_every_pass_and_products_hide_them(mistral_7b: ModelShape) -> None:
    load = dataclasses.replace(LOAD, tokens=1 << 20, pass_tokens=16384)  # 65,536 tokens a GPU: 4 passes
    time = step_time(mistral_7b, Method(sharded=True), load, H100, 8)
    bytes_sent = 4 * (2 * 2 + 4) * mistral_7b.num_parameters * 7 / 8
    assert time.shards == pytest.approx(bytes_sent / (LINK_SHARE * 450e9))
    assert time.shards < time.products
    assert time.total == pytest.approx(time.products + time.optimizer + time.vectors)
    small = step_time(mistral_7b, Method(sharded=True), dataclasses.replace(load, pass_tokens=1024), H100, 8)
    assert small.total > small.shards > small.products
    assert small.waiting_share > 0.1


def test_full_tuning_of_7b_fits_in_shards_alone(mistral_7b: ModelShape) -> None:
    whole = forecast(mistral_7b, Method(checkpointing=True), LOAD, H100, 8)
    shards = forecast(mistral_7b, Method(checkpointing=True, sharded=True), LOAD, H100, 8)
    assert not whole.fits
    assert whole.breaks_first == "moments"
    assert shards.fits
    assert shards.breaks_first is None
    # useful FLOPs are 3 of the 4 forward passes' worth that checkpointing computes, and GradCache computes a fifth
    assert shards.mfu == pytest.approx(0.4 * 3 / (4 + LOAD.encoded_twice(8)), rel=0.05)


def test_widest_is_the_largest_power_of_two_that_fits(mistral_7b: ModelShape) -> None:
    method = Method(checkpointing=True, sharded=True)
    many = dataclasses.replace(LOAD, rows=1 << 16, tokens=1 << 20)
    found = widest(mistral_7b, method, many, H100, 8)
    twice = dataclasses.replace(found, tokens=2 * found.tokens)
    assert memory(mistral_7b, method, found, 8).total <= H100.memory_bytes < memory(mistral_7b, method, twice, 8).total
    assert widest(mistral_7b, Method(), many, H100, 8).tokens == 512  # nothing fits: that of the longest text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen": "nf4"}, "give a rank"),
        ({"rank": 4, "frozen": "bfloat16", "precision": "float32"}, "set precision bfloat16"),
        ({"rank": 4, "frozen": "nf4", "sharded": True}, "sharded or nf4"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Method(**settings)  # type: ignore[arg-type]


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="no forecast for"):
        ModelShape.of_config(transformers.T5Config(num_layers=2, d_model=32, d_ff=64, num_heads=2, vocab_size=50))
