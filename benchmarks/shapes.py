"""Our engine's forward pass over a random checkpoint of a known shape, built on the device: no download, no Ray.

For a GPU machine that has torch and transformers and little else. Token ids are random; their number per text is fixed,
or drawn from a lognormal like that of web passages. Batches are planned, padded, pooled and normalised by the engine's
own code, and time stands for all of it, from ids in memory to vectors in memory. MFU counts the multiplications and
additions of the tokens of texts, not those of padding, against the peak of dense bfloat16 products.

With `--packing` every line is measured twice, in turns: padded, and packed (`embedder.packing`), for the decision which
of them a model should run with on a machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
import transformers
from numpy.typing import NDArray

from operators.embedder.model.flops import Flops
from operators.embedder.model.forward import PaddedForward, PaddedTrunk
from operators.embedder.model.packing import IMPLEMENTATION, pack
from operators.embedder.selftest import MIN_COSINE
from operators.embedder.tokens import batching
from operators.embedder.tokens.batching import Batch
from operators.embedder.vectors import finish

# dense bfloat16 TFLOP/s, by a part of the name that CUDA gives a GPU (the vendor's data sheets)
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
MAX_TOKENS = 512
SHAPES = {
    "mistral-7b": transformers.MistralConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    ),
    "qwen3-0.6b": transformers.Qwen3Config(
        vocab_size=151669,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
    ),
    "small": transformers.Qwen3Config(
        vocab_size=30000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
    ),
    "tiny": transformers.Qwen3Config(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run over a shape."""
    parser.add_argument("--shape", choices=SHAPES, help="a random checkpoint, instead of the comparison")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="with --shape: where it runs")
    parser.add_argument("--lengths", nargs="+", default=["512", "lognormal"], help="with --shape: tokens per text")
    parser.add_argument(
        "--budgets", nargs="+", type=int, default=[8192, 16384, 32768, 65536], help="with --shape: tokens per batch"
    )
    parser.add_argument("--tokens", type=int, default=500_000, help="with --shape: tokens per run")
    parser.add_argument("--bidirectional", action="store_true", help="with --shape: every token sees the whole text")
    parser.add_argument("--packing", action="store_true", help="with --shape: without padding too, in turns")


def model_without_weights(config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    """The model of a config, its weights without memory, as the engine has it (no pooler): for counting."""
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    if hasattr(model, "pooler"):
        model.pooler = None
    return model


def random_model(shape: str, device: torch.device, causal: bool) -> transformers.PreTrainedModel:
    """The shape in bfloat16 with random weights, made on the device itself: a 7B model takes seconds on a GPU."""
    torch.manual_seed(0)
    with device:
        model = transformers.AutoModel.from_config(copy.deepcopy(SHAPES[shape]), dtype=torch.bfloat16)
    model.config.use_cache = False
    model.config.is_causal = causal
    return model.eval()


@dataclass(slots=True)
class Contender:
    """A way through the model, and how long each of its rounds took."""

    name: str
    attention: str  # transformers' name of it
    forward: PaddedForward
    seconds: list[float] = field(default_factory=list)


def contenders(model: transformers.PreTrainedModel, device: torch.device, packing: bool) -> list[Contender]:
    """The padded forward and, where it is wanted, the packed one of the same weights."""
    causal = bool(model.config.is_causal)
    padded = PaddedTrunk(model, device, causal)
    found = [Contender("padded", "sdpa", PaddedForward(padded, "last" if causal else "mean"))]
    if packing:
        ids = random_ids(np.array([300, 90, 90, 7]), model.config.vocab_size)
        probe = Batch(ids.values.to_numpy().astype(np.int64), np.diff(ids.offsets.to_numpy()))
        packed = pack(padded, probe, MIN_COSINE["bfloat16"])
        found.append(Contender("packed", IMPLEMENTATION, PaddedForward(packed, "last" if causal else "mean")))
    return found


def draw_lengths(lengths: str, num_tokens: int) -> NDArray[np.int64]:
    """lengths_N of some `num_tokens` in all: fixed, or lognormal around 150 and at most MAX_TOKENS."""
    if lengths != "lognormal":
        return np.full(max(1, num_tokens // int(lengths)), int(lengths), np.int64)
    draws = np.exp(np.random.default_rng(0).normal(np.log(150), 0.8, num_tokens // 100))
    drawn = np.clip(draws, 5, MAX_TOKENS).astype(np.int64)
    return drawn[: int(np.searchsorted(np.cumsum(drawn), num_tokens)) + 1]


def random_ids(lengths_N: NDArray[np.int64], vocab_size: int) -> pa.ListArray:
    """Token ids of these lengths, in random order of length."""
    lengths_N = np.random.default_rng(1).permutation(lengths_N)
    ids = np.random.default_rng(2).integers(10, vocab_size, lengths_N.sum(), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))


@torch.inference_mode()
def embed(forward: PaddedForward, input_ids: pa.ListArray, plan: batching.Plan, device: torch.device) -> None:
    """What `Embedder` does with a call's rows; returns when the vectors are in memory."""
    pooled = [forward(batch) for batch in batching.batches(input_ids, plan)]
    finish(torch.cat(pooled), normalize=True)[0].cpu()


def measure(arguments: argparse.Namespace) -> None:
    """Print a line for each kind of lengths, each budget and each way through the model."""
    device = torch.device(arguments.device)
    model = random_model(arguments.shape, device, not arguments.bidirectional)
    ways = contenders(model, device, arguments.packing)
    flops = Flops.of(model)
    peak_tflops = arguments.peak_tflops or known_peak(device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    attention = "bidirectional" if arguments.bidirectional else "causal"
    print(f"\n{arguments.shape}, {attention}, {num_parameters / 1e9:.2f}B parameters, bfloat16, {device_name(device)}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peak {peak_tflops or '?'} TFLOP/s\n")
    print(
        "| lengths | texts | budget | forward | tokens/s | least-most | padding | TFLOP/s | MFU |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for lengths in arguments.lengths:
        input_ids = random_ids(draw_lengths(lengths, arguments.tokens), model.config.vocab_size)
        lengths_N = np.diff(input_ids.offsets.to_numpy())
        num_tokens = int(lengths_N.sum())
        for budget in arguments.budgets:
            plan = batching.plan(lengths_N, budget)
            take_turns(model, ways, input_ids, plan, device, arguments.rounds)
            for way in ways:
                median = statistics.median(way.seconds)
                tflops = flops.total(lengths_N) / median / 1e12
                padding = plan.padding_tokens if way.forward.pads else 0
                print(
                    f"| {lengths} | {len(lengths_N)} | {budget} | {way.name} | {num_tokens / median:,.0f} "
                    f"| {num_tokens / max(way.seconds):,.0f}-{num_tokens / min(way.seconds):,.0f} "
                    f"| {padding / (num_tokens + padding):.1%} | {tflops:.2f} "
                    f"| {f'{tflops / peak_tflops:.1%}' if peak_tflops else '-'} |",
                    flush=True,
                )


def take_turns(
    model: transformers.PreTrainedModel,
    ways: list[Contender],
    input_ids: pa.ListArray,
    plan: batching.Plan,
    device: torch.device,
    rounds: int,
) -> None:
    """Fill in the seconds of every contender's rounds, the first of them, a short one, not counted."""
    for way in ways:
        model.set_attn_implementation(way.attention)
        embed(way.forward, input_ids, warm_up(plan), device)
        way.seconds = []
    for _ in range(rounds):
        for way in ways:
            model.set_attn_implementation(way.attention)
            start = time.perf_counter()
            embed(way.forward, input_ids, plan, device)
            way.seconds.append(time.perf_counter() - start)


def warm_up(plan: batching.Plan) -> batching.Plan:
    """The first two batches of a plan: the largest memory, and every kernel loaded."""
    cuts = plan.cuts[:3]
    return batching.Plan(plan.order[: cuts[-1]], cuts, 0)


def known_peak(device: torch.device) -> float | None:
    """Peak dense bfloat16 TFLOP/s of a GPU in PEAK_TFLOPS."""
    name = device_name(device).upper()
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def device_name(device: torch.device) -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
