"""What comes after pooling: small trained layers from pooled state to vector, loaded from safetensors alone.

Shapes: B rows, D width of a pooled state, E width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError

from operators.embedder.recipe.head_files import POOLER, DenseFile, read_dense
from operators.errors import InputError

if TYPE_CHECKING:
    import transformers

ACTIVATIONS = {"Identity": torch.nn.Identity, "Tanh": torch.nn.Tanh, "GELU": torch.nn.GELU, "ReLU": torch.nn.ReLU}


class Dense(torch.nn.Module):
    """pooled_BD -> pooled_BE: a linear layer and an activation, as the Dense module of sentence-transformers."""

    def __init__(self, linear: torch.nn.Linear, activation: torch.nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation

    def forward(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        """pooled_BE."""
        result: torch.Tensor = self.activation(self.linear(pooled_BD))
        return result


def load_head(
    root: Path, names: Sequence[str], model: transformers.PreTrainedModel | None = None
) -> torch.nn.Module | None:
    """A recipe's head in float32, on the CPU: `pooler` is the `model`'s own, another name a Dense folder in `root`."""
    if not names:
        return None
    parts = [_pooler(model) if name == POOLER else load_dense(read_dense(root / name)) for name in names]
    return torch.nn.Sequential(*parts).to(torch.float32).requires_grad_(False).eval()


def load_dense(file: DenseFile) -> Dense:
    """The Dense module of a folder; raises InputError where its weights are not those its config.json says."""
    linear = torch.nn.Linear(file.in_features, file.out_features, bias=file.bias)
    try:
        weights = safetensors.torch.load_file(file.weights)
        linear.load_state_dict({name.removeprefix("linear."): weight for name, weight in weights.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(
            f"cannot load the head {file.weights}: it does not fit its config.json: {' '.join(str(error).split())}"
        ) from error
    return Dense(linear, ACTIVATIONS[file.activation]())


def _pooler(model: transformers.PreTrainedModel | None) -> Dense:
    assert model is not None, "a recipe whose head is the pooler is loaded with its model"
    pooler = getattr(model, "pooler", None)
    linear = getattr(pooler, "dense", None)
    if not isinstance(linear, torch.nn.Linear) or not isinstance(getattr(pooler, "activation", None), torch.nn.Tanh):
        raise InputError(f"head: pooler is not there: {model.config.model_type} has no layer with tanh after pooling")
    model.pooler = None  # else the model would compute it too
    return Dense(linear, torch.nn.Tanh())
