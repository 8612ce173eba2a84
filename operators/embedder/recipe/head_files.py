"""The files of a recipe's head and what they say of its shape; without torch, for the driver of a job.

A head is a chain of names: `pooler` is the layer that BERT's own checkpoint has for [CLS], any other name the folder of
a Dense module of sentence-transformers beside the checkpoint. `{dims}` in a name stands for the size that is asked for,
where a checkpoint has a head for each (stella).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from operators.embedder.recipe.checkpoint import read_json
from operators.embedder.recipe.folder_keys import check_keys
from operators.errors import InputError

POOLER = "pooler"
DIMS = "{dims}"
_USED = ("in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name")
_FIXED = {"use_residual": (False,)}
ACTIVATIONS = ("Identity", "Tanh", "GELU", "ReLU")


@dataclass(frozen=True, slots=True)
class DenseFile:
    """A Dense module on disk."""

    weights: Path  # safetensors with linear.weight and, with bias, linear.bias
    in_features: int
    out_features: int
    bias: bool
    activation: str


def read_dense(folder: Path) -> DenseFile:
    """What a Dense folder says; raises InputError for one that does more than a linear layer and an activation."""
    if not (folder / "config.json").is_file():
        raise InputError(f"head {folder} is not there: give the folder of a Dense module beside the checkpoint")
    config = read_json(folder / "config.json")
    activation = str(config.get("activation_function", "")).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        raise InputError(f"{folder} has the activation {activation!r}: supported are {', '.join(ACTIVATIONS)}")
    names = (config.get("module_input_name"), config.get("module_output_name"))
    if config.get("use_residual") or not set(names) <= {None, "sentence_embedding"}:
        raise InputError(f"{folder} is a Dense module with a residual or for tokens, which is not supported")
    check_keys(folder / "config.json", config, _USED, _FIXED)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        pickled = " only pickled weights: convert them to" if (folder / "pytorch_model.bin").is_file() else " no"
        raise InputError(f"{folder} has{pickled} model.safetensors")
    return DenseFile(
        weights, int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True)), activation
    )


def head_width(root: Path, names: Sequence[str], width: int) -> int:
    """The width of the vectors that a head makes of pooled states `width` wide; raises InputError where none fits."""
    for name in names:
        if name == POOLER:
            continue
        file = read_dense(root / name)
        if file.in_features != width:
            raise InputError(
                f"head {name} takes vectors {file.in_features} wide, but what comes before it in {root} is {width} wide"
            )
        width = file.out_features
    return width


def head_weights(root: Path, names: Sequence[str]) -> list[list[Path]]:
    """For each part of a head that is not in the checkpoint's own weights, the files that determine it."""
    return [[root / name / "config.json", read_dense(root / name).weights] for name in names if name != POOLER]
