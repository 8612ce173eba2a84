"""Memory of one GPU in training, part by part, in bytes.

    weights, gradients, moments   4 + 4 + 8 bytes a trained parameter (AdamW in float32); frozen ones 4, 2, or in NF4
                                  4.127 bits (QLoRA, arXiv 2305.14314: 64 weights share an 8-bit constant, 256 of those
                                  a float32); FSDP2 leaves 1 / GPUs of each (ZeRO-3, Rajbhandari et al. 2020,
                                  arXiv 1910.02054)
    copies for products           bfloat16 copies that autocast makes of float32 weights and backward keeps: one set a
                                  step of trained weights, one for each forward pass held of frozen ones; or two
                                  gathered blocks (this one and the next) and what is no block, with one block's
                                  gradient in bfloat16 and float32; or a block out of NF4
    activations                   of the tokens held: `block_activations` a block, or its input alone (checkpointing)
    block in backward             what one block needs beside: computed again, and gradients of its widest states
    representations               of all GPUs, float32, with gradients, and what the loss makes of them
    reserve                       assumed: CUDA context and NCCL 1.5 GB, and 5 % of the rest for fragmentation

Activations follow Korthikanti et al. 2022 (arXiv 2205.05198, section 4), counted anew for eager PyTorch as transformers
writes it: without tensor parallelism, attention in a fused kernel that keeps queries, keys, values, its output and one
number a head and token (FlashAttention, arXiv 2205.14135), so that nothing grows with the square of a text's length.
Grouped keys stay grouped, as they do where no padding mask is given.
For BERT in 16 bits with dropout this is their 34 h bytes a token and block; a Mistral in 16 bits keeps
16 h + 4 (query + key-value width) + 8 f. Tests count what autograd really keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from operators.training.forecast.method import Load, Method
from operators.training.forecast.shape import ModelShape

_WEIGHT, _GRADIENT, _MOMENTS = 4, 4, 8
_FROZEN = {"float32": 4.0, "bfloat16": 2.0, "nf4": (4 + 8 / 64 + 32 / (64 * 256)) / 8}
_MASK = 1  # byte a number that dropout may leave out
_RUNTIME_BYTES, _FRAGMENTATION = 1.5e9, 0.05
_LOSS_BYTES = 8 * 4 * (1 << 20)  # eight matrices of the blocks in which losses are computed


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU."""

    weights: float
    gradients: float
    moments: float
    copies: float
    activations: float
    block_in_backward: float
    representations: float
    reserve: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """By name."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "moments": self.moments,
            "copies for products": self.copies,
            "activations": self.activations,
            "block in backward": self.block_in_backward,
            "representations": self.representations,
            "reserve": self.reserve,
        }


def memory(shape: ModelShape, method: Method, load: Load, num_gpus: int) -> Memory:
    """What one of `num_gpus` needs."""
    shards = num_gpus if method.sharded else 1
    trained, held = num_trained(shape, method), load.held_tokens(num_gpus)
    frozen = _frozen_bytes(shape, method)
    whole = block_activations(shape, method) * min(held, load.pass_tokens)
    kept = shape.layers * held * (
        method.stream_bytes * shape.hidden if method.checkpointing else block_activations(shape, method)
    ) + held * _end_activations(shape, method)
    vectors = 2 * 4.0 * load.texts * load.dim
    parts = (
        (_WEIGHT * trained + frozen) / shards,
        _GRADIENT * trained / shards,
        _MOMENTS * trained / shards,
        _copies(shape, method, load.passes(held)),
        kept,
        (whole if method.checkpointing else 0.0) + _gradients_in_block(shape, method) * min(held, load.pass_tokens),
        vectors + min(_LOSS_BYTES, 8 * 4.0 * load.texts / num_gpus * load.texts),
    )
    return Memory(*parts, reserve=_RUNTIME_BYTES + _FRAGMENTATION * sum(parts))


def num_trained(shape: ModelShape, method: Method) -> int:
    """Parameters that are trained."""
    return shape.num_parameters if method.rank is None else shape.adapter_parameters(method.rank)


def block_activations(shape: ModelShape, method: Method) -> float:
    """Bytes that autograd keeps of one block for one token.

    h hidden, q and kv widths of queries and of keys or values, f of the MLP; c bytes of a product's number, s of one
    between blocks:

        norms        LayerNorm s h; RMSNorm 4 h, and s h more if its weights are trained. Norms of heads likewise
        inputs       c h for what reads a norm's output; for each reader of its own where it is cast, or adapters drop
        attention    c (2 q + 2 kv) + 4 a head; a copy of its output for an adapter where there is one
        MLP          c 4 f where it is gated (gate, its activation, up, product), else c 2 f
        dropout      a byte a number: two of h, or the inputs of all adapters; adapters keep c rank of each too
    """
    c, s, h = method.compute_bytes, method.stream_bytes, shape.hidden
    is_adapted = method.rank is not None
    own_inputs = method.is_autocast or (is_adapted and method.adapter_dropout)
    norms = 2.0 * h * (4 + (0 if is_adapted else s)) if shape.has_rms_norm else 2.0 * h * s
    if shape.has_head_norms:
        norms += (shape.query_width + shape.key_value_width) * (4 + (0 if is_adapted else c))
    readers = shape.inputs_of_attention + shape.inputs_of_mlp if own_inputs else 2
    attention = c * (2 * shape.query_width + 2 * shape.key_value_width) + 4 * shape.heads
    mlp = c * (4 if shape.is_gated else 2) * shape.mlp_width
    total = norms + c * readers * h + attention + mlp + (2 * h * _MASK if method.dropout else 0)
    if method.rank is not None:
        total += c * method.rank * len(shape.linears) + (c * shape.query_width if own_inputs else 0)
        total += _MASK * sum(inputs for inputs, _ in shape.linears) if method.adapter_dropout else 0
    return total


def _end_activations(shape: ModelShape, method: Method) -> float:
    """Of a token, outside of the blocks: what the last norm keeps, or BERT's first.

    Nothing where all weights are frozen: the last norm keeps what the first does not, before which nothing is trained.
    """
    if method.rank is not None:
        return 0.0
    return float((4 if shape.has_rms_norm else 0) + method.stream_bytes) * shape.hidden


def _gradients_in_block(shape: ModelShape, method: Method) -> float:
    """Of a token, while backward goes through the MLP: gradients of its widest states and of the stream."""
    widest = 3 if shape.is_gated else 2
    return method.compute_bytes * widest * shape.mlp_width + 2.0 * method.stream_bytes * shape.hidden


def _frozen_bytes(shape: ModelShape, method: Method) -> float:
    """Weights that are not trained; of NF4 only linear layers are quantised, the rest is in bfloat16."""
    if method.rank is None:
        return 0.0
    if method.frozen != "nf4":
        return _FROZEN[method.frozen] * shape.num_parameters
    linear = shape.layers * shape.block_linear_parameters
    return _FROZEN["nf4"] * linear + _FROZEN["bfloat16"] * (shape.num_parameters - linear)


def _copies(shape: ModelShape, method: Method, passes: int) -> float:
    """Weights as products read them, beside those that are stored."""
    linear = shape.layers * shape.block_linear_parameters
    if method.frozen == "nf4":
        return 2.0 * shape.block_linear_parameters
    if method.sharded:
        bytes_each = method.compute_bytes if method.rank is None else int(_FROZEN[method.frozen])
        others = shape.num_parameters - shape.layers * shape.block_parameters
        gradient = (method.compute_bytes + 4) * shape.block_parameters if method.rank is None else 0
        return float(bytes_each * (2 * shape.block_parameters + others) + gradient)
    if not method.is_autocast:
        return 0.0
    if method.rank is None:
        return 2.0 * linear
    return 2.0 * (shape.block_linear_parameters if method.checkpointing else passes * linear)  # none is cached
