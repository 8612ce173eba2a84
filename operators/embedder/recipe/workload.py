"""About how long a CPU takes for texts, from a recipe and a checkpoint's config alone: no torch, no tokenizer.

Good to a factor of two, which is enough to cut work by time (operators/corpus/cutting.py) and for nothing else:
operators.embedder.factory.flops_of counts the model's own parameters, and a run's report has its real speed.

Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.corpus.chunking_config import Chunking
from operators.embedder.recipe.checkpoint import WIDTH_KEYS
from operators.embedder.recipe.keywords import ComputeDtype
from operators.embedder.recipe.spec import EmbedderSpec, text_config, verified_folder

BYTES_PER_TOKEN = 4  # of UTF-8; English prose has 4.3, source code 3.3
SPECIAL_TOKENS = 2
# FLOP/s of one core in the engine's own forward pass, by what its CPU can do (benchmarks/RESULTS.md has measured ones);
# models that go through transformers reach about half of it.
_FLOAT32 = {"avx512f": 110e9, "avx2": 50e9}
_BFLOAT16 = {"amx_bf16": 400e9, "avx512_bf16": 250e9}
_OTHER_CPU = 30e9


def tokens_of(content_bytes_N: NDArray[np.int64], spec: EmbedderSpec, chunking: Chunking) -> NDArray[np.float64]:
    """About how many tokens the model reads of texts of so many bytes, in all chunks and readings."""
    text_N = content_bytes_N / BYTES_PER_TOKEN
    chunks_N = np.ones(len(text_N))
    if chunking.tokens is not None:
        chunks_N = np.maximum(1.0, np.ceil(text_N / (chunking.tokens - chunking.overlap)))
        text_N = text_N * chunking.tokens / (chunking.tokens - chunking.overlap)
    if chunking.late:
        return text_N
    around = [len((t.prefix + t.suffix + (t.between or "")).encode()) / BYTES_PER_TOKEN for t in spec.templates]
    readings = zip(spec.templates, around, strict=True)
    tokens_N: NDArray[np.float64] = np.sum(
        [
            np.minimum(t.copies * text_N + (n + SPECIAL_TOKENS) * chunks_N, spec.recipe.max_tokens * chunks_N)
            for t, n in readings
        ],
        axis=0,
    )
    return tokens_N


def flops_per_token(spec: EmbedderSpec, length: float) -> float:
    """About the FLOPs of a token in a text of `length` tokens."""
    if spec.recipe.kind == "static":
        return float(spec.dim)
    return transformer_flops(text_config(verified_folder(spec, weights=False), spec.recipe), length)


def transformer_flops(config: Mapping[str, Any], length: float) -> float:
    """The same of a transformer with such a config.json; sizes that it does not say are those of BERT."""

    def number(*keys: str, default: int) -> int:
        return next((config[key] for key in keys if isinstance(config.get(key), int) and config[key] > 0), default)

    width = number(*WIDTH_KEYS, default=768)
    layers = number("num_hidden_layers", "n_layers", "n_layer", default=12)
    inner = number("intermediate_size", "hidden_dim", "ffn_dim", "n_inner", default=4 * width)
    heads = number("num_attention_heads", "n_heads", "n_head", default=12)
    attended = number("head_dim", default=width // heads) * heads
    shared = number("num_key_value_heads", default=heads) / heads
    # Gated: a third matrix. No config says so; the families with it came with one of these keys
    matrices = 3 if {"num_key_value_heads", "global_attn_every_n_layers"} & config.keys() else 2
    weights = width * attended * (2 + 2 * shared) + matrices * width * inner
    return layers * (2.0 * weights + 4.0 * attended * length)


def core_flops(dtype: ComputeDtype, cpu_flags: frozenset[str]) -> float:
    """About the FLOP/s of one core of a CPU with these flags (as in /proc/cpuinfo), in models of this number format."""
    measured = {**_BFLOAT16, **_FLOAT32} if dtype == "bfloat16" else _FLOAT32
    return next((speed for flag, speed in measured.items() if flag in cpu_flags), _OTHER_CPU)
