"""The weights of BERT, RoBERTa, XLM-R and CamemBERT by what they are, from safetensors, without torch or transformers.

What computes with them (operators.embedder.model.plain_bert in numpy, operators.embedder.model.fast_bert in torch)
knows one architecture, so a checkpoint is taken only if it says in every point that it is this one: each key of its
config.json is understood or known to change no vector, each weight is there in the right shape, and none is left over.
Anything else is for transformers.

The arrays of a checkpoint in float32 are views of its mapped files: the processes of a machine share them.

Shapes: V ids, P positions, D width, I inner width, E outputs and C inputs of a linear layer.
"""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.embedder.recipe.checkpoint import read_config, weight_files
from operators.embedder.recipe.head_files import POOLER
from operators.embedder.recipe.recipe import Recipe

Array = NDArray[np.float32]

FAMILIES = frozenset({"bert", "roberta", "xlm-roberta", "camembert"})
OFFSET_FAMILIES = FAMILIES - {"bert"}  # positions start at pad_token_id + 1, and skip pad tokens within a text
POOLINGS = ("mean", "cls", "last")  # that what computes with these weights has
PREFIXES = ("bert.", "roberta.", "")  # that a checkpoint of a larger model puts before the encoder's names
# What a checkpoint may hold beside the encoder: heads that embedding does not use, and a buffer of older versions
UNUSED_WEIGHTS = ("pooler.", "cls.", "lm_head.", "classifier.", "embeddings.position_ids")

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
# Values that the formula has; a config with another one is a variant
_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False,),
}
# Keys that change no vector: training, generation, labels, files, and what older versions wrote
_HARMLESS = frozenset(
    {
        "_name_or_path",
        "_attn_implementation_autoset",
        "architectures",
        "attention_probs_dropout_prob",
        "bos_token_id",
        "classifier_dropout",
        "cls_token_id",
        "directionality",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "id2label",
        "initializer_range",
        "label2id",
        "mask_token_id",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "tie_word_embeddings",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "unk_token_id",
        "use_bfloat16",
        "use_cache",
    }
)


@dataclass(frozen=True, slots=True)
class BertShape:
    """The sizes of a BERT encoder."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    types: int
    eps: float  # of layer norms
    pad_id: int | None  # of a family whose positions skip it (`OFFSET_FAMILIES`), else None

    @property
    def flops_per_token(self) -> float:
        """Multiplications and additions per token: 2 per parameter, tables of embeddings excluded."""
        attention = 4 * (self.width**2 + self.width)
        inner = 2 * self.width * self.inner + self.inner + self.width
        return 2.0 * (self.layers * (attention + inner + 4 * self.width) + 2 * self.width)

    @property
    def flops_per_pair(self) -> float:
        """The same per pair of tokens of a text: scores and weighted sum."""
        return 4.0 * self.layers * self.width


@dataclass(frozen=True, slots=True)
class Linear:
    """x_C -> weight_EC @ x_C + bias_E."""

    weight_EC: Array
    bias_E: Array


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Scale and shift after normalising."""

    weight_D: Array
    bias_D: Array


@dataclass(frozen=True, slots=True)
class BertLayer:
    """One layer of the encoder."""

    query: Linear
    key: Linear
    value: Linear
    context: Linear
    context_norm: LayerNorm
    inner: Linear
    outer: Linear
    norm: LayerNorm


@dataclass(frozen=True, slots=True)
class BertWeights:
    """A whole encoder, its pooler left out."""

    shape: BertShape
    words_VD: Array
    positions_PD: Array
    type_D: Array  # of token type 0, the only one in embedding
    norm: LayerNorm
    layers: tuple[BertLayer, ...]
    files: tuple[mmap.mmap, ...] = ()  # that the arrays are views of, where they are

    def release(self) -> None:
        """Give the pages of the files that were read back to the kernel; what is looked at again is mapped again."""
        for file in self.files:
            if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                file.madvise(mmap.MADV_DONTNEED)


def asks_for_no_more(recipe: Recipe) -> bool:
    """Whether a recipe's vectors follow from the states of a plain encoder's last layer, and from nothing else."""
    return (
        recipe.kind == "transformer"
        and recipe.pooling in POOLINGS
        and recipe.layers == (-1,)
        and recipe.attention != "causal"
        and recipe.prepend is None
        and recipe.trunk is None
        and recipe.latent_attention is None
        and not recipe.adapters
        and POOLER not in recipe.head
    )


def difference(config: Mapping[str, Any]) -> str | None:
    """The first key of a config.json by which it is, or may be, another architecture, with its value; None: it is this.

    `hidden_act` has to be there: its default is the one of transformers, which may change.
    """
    if config.get("model_type") not in FAMILIES:
        return f"model_type: {config.get('model_type')!r}"
    for name in _SIZES:
        if not _is_size(config.get(name)):
            return f"{name}: {config.get(name)!r}"
    known = {"model_type", "layer_norm_eps", "pad_token_id", *_SIZES, *_HARMLESS}
    for name, value in {"hidden_act": None, **config}.items():
        if value not in _FIXED[name] if name in _FIXED else name not in known:
            return f"{name}: {value!r}"
    if not isinstance(config.get("layer_norm_eps"), float):
        return f"layer_norm_eps: {config.get('layer_norm_eps')!r}"
    if config["hidden_size"] % config["num_attention_heads"]:
        return f"num_attention_heads: {config['num_attention_heads']!r}"
    if config["model_type"] in OFFSET_FAMILIES and not isinstance(config.get("pad_token_id"), int):
        return f"pad_token_id: {config.get('pad_token_id')!r}"
    return None


def bert_shape(config: Mapping[str, Any]) -> BertShape | None:
    """The sizes in a config.json; None where it does not describe the plain architecture in every key."""
    if difference(config) is not None:
        return None
    skipped = int(config["pad_token_id"]) if config["model_type"] in OFFSET_FAMILIES else None
    vocab_size, width, layers, heads, inner, positions, types = (int(config[name]) for name in _SIZES)
    return BertShape(
        vocab_size, width, layers, heads, inner, positions, types, float(config["layer_norm_eps"]), skipped
    )


def read_bert(folder: Path) -> BertWeights | None:
    """The encoder of a checkpoint's folder; None where it is not the plain architecture, or not all of it."""
    config = read_config(folder)
    if difference(config) is not None:
        return None
    files = [path for path in weight_files(folder) if path.suffix == ".safetensors"]
    mapped = [map_file(path) for path in files]
    tensors = read_tensors(mapped)
    weights = None if tensors is None else bert_weights(config, tensors)
    return None if weights is None else dataclasses.replace(weights, files=tuple(mapped))


def map_file(path: Path) -> mmap.mmap:
    """A file mapped into memory; what is written to it stays this process's own."""
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)


def bert_weights(config: Mapping[str, Any], tensors: Mapping[str, Array]) -> BertWeights | None:
    """The encoder in a checkpoint's tensors; None where it is not the plain architecture, or not all of it."""
    shape = bert_shape(config)
    if shape is None:
        return None
    named = _without_prefix(tensors)
    wanted = _shapes(shape)
    if any(name not in named or named[name].shape != size for name, size in wanted.items()):
        return None
    if any(name not in wanted and not name.startswith(UNUSED_WEIGHTS) for name in named):
        return None
    found = {name: named[name] for name in wanted}
    return BertWeights(
        shape,
        found["embeddings.word_embeddings.weight"],
        found["embeddings.position_embeddings.weight"],
        found["embeddings.token_type_embeddings.weight"][0],
        _norm(found, "embeddings.LayerNorm"),
        tuple(_layer(found, f"encoder.layer.{index}") for index in range(shape.layers)),
    )


def read_tensors(files: Iterable[mmap.mmap]) -> dict[str, Array] | None:
    """All tensors of mapped safetensors files in float32; those that are stored so are views.

    None where one is of another kind than float32, float16 and bfloat16, or of integers (which position ids are).
    """
    tensors: dict[str, Array] = {}
    for file in files:
        size = int.from_bytes(file[:8], "little")
        header: dict[str, Any] = json.loads(file[8 : 8 + size])
        content = np.frombuffer(file, np.uint8, offset=8 + size)
        for name, entry in header.items():
            if name == "__metadata__" or name.endswith("position_ids"):
                continue
            start, end = entry["data_offsets"]
            tensor = _as_float32(content[start:end], entry["dtype"])
            if tensor is None or tensor.size != math.prod(entry["shape"]):
                return None
            tensors[name] = tensor.reshape(entry["shape"])
    return tensors


def _as_float32(content: NDArray[np.uint8], dtype: str) -> Array | None:
    if dtype == "F32":
        return content.view(np.float32)
    if dtype == "F16":
        return content.view(np.float16).astype(np.float32)
    if dtype == "BF16":  # the upper half of a float32
        return (content.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return None


def _is_size(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _without_prefix(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors by the encoder's own names, under which older checkpoints call a norm's weights gamma and beta."""
    prefix = next((p for p in PREFIXES if f"{p}embeddings.word_embeddings.weight" in tensors), "")
    renamed = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(prefix)
        plain = plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        renamed[plain] = tensor
    return renamed


def _shapes(shape: BertShape) -> dict[str, tuple[int, ...]]:
    """The names and sizes of all weights of an encoder."""
    width, inner = shape.width, shape.inner
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (shape.vocab_size, width),
        "embeddings.position_embeddings.weight": (shape.positions, width),
        "embeddings.token_type_embeddings.weight": (shape.types, width),
    }
    linears = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
    }
    norms = ["embeddings.LayerNorm"]
    for index in range(shape.layers):
        layer = f"encoder.layer.{index}"
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        for name, size in linears.items():
            shapes[f"{layer}.{name}.weight"] = size
            shapes[f"{layer}.{name}.bias"] = size[:1]
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)
    return shapes


def _layer(found: Mapping[str, Array], layer: str) -> BertLayer:
    return BertLayer(
        query=_linear(found, f"{layer}.attention.self.query"),
        key=_linear(found, f"{layer}.attention.self.key"),
        value=_linear(found, f"{layer}.attention.self.value"),
        context=_linear(found, f"{layer}.attention.output.dense"),
        context_norm=_norm(found, f"{layer}.attention.output.LayerNorm"),
        inner=_linear(found, f"{layer}.intermediate.dense"),
        outer=_linear(found, f"{layer}.output.dense"),
        norm=_norm(found, f"{layer}.output.LayerNorm"),
    )


def _linear(found: Mapping[str, Array], name: str) -> Linear:
    return Linear(found[f"{name}.weight"], found[f"{name}.bias"])


def _norm(found: Mapping[str, Array], name: str) -> LayerNorm:
    return LayerNorm(found[f"{name}.weight"], found[f"{name}.bias"])
