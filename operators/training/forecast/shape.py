"""What of a model decides the memory and the time of its training, counted without loading a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from operators.embedder.model.flops import Flops
from operators.embedder.model.loading import load_config
from operators.embedder.recipe.recipe import Recipe
from operators.errors import InputError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A transformer of equal blocks: attention, then one MLP, each with a norm. Numbers of parameters and of widths."""

    layers: int
    hidden: int
    heads: int
    query_width: int  # of all heads
    key_value_width: int  # of all key heads, which value heads equal
    mlp_width: int
    is_gated: bool  # the MLP multiplies two projections (SwiGLU, GeGLU)
    has_rms_norm: bool  # in eager mode it keeps its input in float32 and what it made of it; LayerNorm its input alone
    has_head_norms: bool  # queries and keys are normed as well (Qwen3)
    num_parameters: int
    block_parameters: int
    linears: tuple[tuple[int, int], ...]  # of a block: inputs and outputs of each linear layer
    flops: Flops

    @property
    def block_linear_parameters(self) -> int:
        """Weights of a block's linear layers: what is cast, quantised or adapted."""
        return sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def inputs_of_attention(self) -> int:
        """Linear layers that read the first norm's output: queries, keys, values."""
        return 3

    @property
    def inputs_of_mlp(self) -> int:
        """Linear layers that read the second norm's output."""
        return 2 if self.is_gated else 1

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of low-rank adapters on all linear layers: rank x (inputs + outputs) each (arXiv 2106.09685)."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.linears)

    @staticmethod
    def of(model: transformers.PreTrainedModel) -> ModelShape:
        """Count a model's, which may be on the meta device. Raises InputError for one that is not of equal blocks."""
        config = model.config
        blocks = next(_stacks(model, int(getattr(config, "num_hidden_layers", 0))), None)
        if blocks is None:
            raise InputError(f"no forecast for {type(model).__name__}: it has no stack of num_hidden_layers blocks")
        block = blocks[0]
        linears = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
        sizes, mlp_width = {_count(one) for one in blocks}, getattr(config, "intermediate_size", None)
        if len(sizes) > 1 or not linears or mlp_width is None:
            raise InputError(
                f"no forecast for {type(model).__name__}: its blocks differ, or are not as BERT's or Llama's"
            )
        heads = int(config.num_attention_heads)
        head = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        names = {name.rpartition(".")[2] for name, _ in block.named_modules()}
        return ModelShape(
            layers=len(blocks),
            hidden=int(config.hidden_size),
            heads=heads,
            query_width=heads * head,
            key_value_width=int(getattr(config, "num_key_value_heads", None) or heads) * head,
            mlp_width=int(mlp_width),
            is_gated="gate_proj" in names,
            has_rms_norm=any("RMSNorm" in type(module).__name__ for module in block.modules()),
            has_head_norms="q_norm" in names,
            num_parameters=_count(model),
            block_parameters=_count(block),
            linears=tuple((linear.in_features, linear.out_features) for linear in linears),
            flops=Flops.of(model),
        )

    @staticmethod
    def of_config(config: transformers.PreTrainedConfig) -> ModelShape:
        """Count the model that a config describes."""
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(config)
        if hasattr(model, "pooler"):
            model.pooler = None
        return ModelShape.of(model)

    @staticmethod
    def of_folder(folder: Path, recipe: Recipe) -> ModelShape:
        """Count a checkpoint's text model."""
        return ModelShape.of_config(load_config(folder, recipe))


def _stacks(model: torch.nn.Module, layers: int) -> Iterator[torch.nn.ModuleList]:
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            yield module


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
