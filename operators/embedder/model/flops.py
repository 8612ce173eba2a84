"""The arithmetic of a forward pass, for MFU (model FLOPs utilisation): what the model needs, whatever is computed.

Shapes: N texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from operators.embedder.model.bert_weights import BertShape, bert_shape
from operators.embedder.recipe.checkpoint import read_config
from operators.embedder.recipe.recipe import Recipe

if TYPE_CHECKING:
    import transformers


@dataclass(frozen=True, slots=True)
class Flops:
    """What a forward pass costs, for MFU: multiplications and additions of the model as published, padding excluded."""

    per_token: float  # 2 per parameter, embedding tables excluded
    per_pair: float  # per pair of tokens of one text that attend to each other: scores and weighted sum, all layers

    @staticmethod
    def of(model: transformers.PreTrainedModel) -> Flops:
        """Count a transformers model's."""
        import torch

        tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding))
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        config = model.config
        layers = int(getattr(config, "num_hidden_layers", 0) or getattr(config, "n_layers", 0))
        heads = int(getattr(config, "num_attention_heads", 0) or getattr(config, "n_heads", 0))
        width = int(getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)) * heads
        return Flops(2.0 * (num_parameters - tables), 4.0 * layers * width)

    @staticmethod
    def of_bert(shape: BertShape) -> Flops:
        """Count a BERT encoder's."""
        return Flops(shape.flops_per_token, shape.flops_per_pair)

    @staticmethod
    def of_folder(folder: Path, recipe: Recipe) -> Flops:
        """Count the text model of a checkpoint without loading a weight."""
        shape = bert_shape(read_config(folder)) if recipe.trunk is None else None
        if shape is not None:
            return Flops.of_bert(shape)
        import torch  # here, with transformers: seconds, and a BERT is counted without
        import transformers

        from operators.embedder.model.loading import load_config

        config = load_config(folder, recipe)
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(config, trust_remote_code=recipe.trust_remote_code)
        if hasattr(model, "pooler"):
            model.pooler = None
        return Flops.of(model)

    def total(self, lengths_N: NDArray[np.int64]) -> float:
        """FLOPs of texts of these lengths; all pairs are counted, as is usual, also where a causal mask skips half."""
        lengths = lengths_N.astype(np.float64)
        return float(self.per_token * lengths.sum() + self.per_pair * (lengths**2).sum())
