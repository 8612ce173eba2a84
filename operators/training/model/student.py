"""A student made of its teacher: some of its layers, and narrower vectors if wanted, as a model folder to be trained.

    teacher's recipe -> trunk without the other layers -> (projection from principal directions) -> model folder

Layers are spread evenly with the first and the last kept, as DistilBERT was initialised (arXiv 1910.01108: 0, 2, 4, 7,
9, 11 of 12); TinyBERT's map (arXiv 1909.10351: every third, the last kept) is `layers: [2, 5, 8, 11]`. What was written
is loaded again and compared, so that a family whose config says more of its layers than was changed is refused.

Shapes: N texts, D width of the teacher's vectors, P width of the student's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import transformers
from numpy.typing import NDArray

from operators.embedder import selftest
from operators.embedder.factory import load_embedder
from operators.embedder.model.heads import Dense
from operators.embedder.recipe.recipe import EmbedderConfig
from operators.embedder.recipe.spec import EmbedderSpec, embedder_spec
from operators.embedder.text_model import load_trunk
from operators.embedder.tokens.tokenizing import Tokenizer
from operators.errors import InputError
from operators.training.config.student import Student
from operators.training.config.tuning import Tuning
from operators.training.model.encoder import Encoder
from operators.training.model.export import export

# Largest difference of a state to that of the same layers before they were saved, in units of the largest state:
# float32 on both sides, so that kernels differ at most in the order of a sum
TOLERANCE = 1e-4


def spread_layers(num_layers: int, keep: int) -> tuple[int, ...]:
    """`keep` layers of `num_layers`, evenly spread from the first to the last; of one, the first."""
    return tuple(int(layer + 0.5) for layer in np.linspace(0, num_layers - 1, keep))


def make_student(spec: EmbedderSpec, student: Student, folder: Path, texts: Sequence[str] = ()) -> tuple[int, ...]:
    """Write the student's model folder; returns the layers that it has of its teacher.

    `texts` are those whose vectors a projection (`student.dims`) is made from. Weights are written in float32.
    """
    encoder = Encoder(spec, Tuning(precision="float32"), torch.device("cpu")).eval()
    trunk = encoder.merged_trunk()
    layers = _wanted_layers(spec, student, int(trunk.config.num_hidden_layers))
    if student.dims is not None:
        _project(encoder, texts, student.dims)
    keep_layers(trunk, layers)
    export(encoder, folder)
    _check(folder, trunk)
    return layers


def _wanted_layers(spec: EmbedderSpec, student: Student, num_layers: int) -> tuple[int, ...]:
    keep = student.num_layers if student.num_layers is not None else len(student.layers or ())
    wanted = student.layers or spread_layers(num_layers, min(keep, num_layers))
    if keep > num_layers or not 0 <= wanted[0] <= wanted[-1] < num_layers:
        raise InputError(f"set student.layers within 0 and {num_layers - 1}: {spec.model} has {num_layers} layers")
    for layer in spec.recipe.layers:
        if not -keep - 1 <= layer <= keep:
            raise InputError(f"keep more layers: the recipe of {spec.model} pools layer {layer}, and {keep} are kept")
    return wanted


def keep_layers(model: transformers.PreTrainedModel, layers: Sequence[int]) -> None:
    """Take all other layers out of a model, and what its config says of each layer."""
    num_layers = int(model.config.num_hidden_layers)
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
    ]
    outermost = [
        (name, module) for name, module in stacks if not any(name.startswith(f"{other}.") for other, _ in stacks)
    ]
    if len(outermost) != 1:
        found = ", ".join(name for name, _ in outermost) or "none"
        raise InputError(f"{model.config.model_type}: expected one stack of {num_layers} layers, found {found}")
    name, stack = outermost[0]
    holder, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(holder), attribute, torch.nn.ModuleList(stack[layer] for layer in layers))
    for key, value in model.config.to_dict().items():  # layer_types of Gemma, Qwen, ModernBERT, and the like
        if "layer" in key and isinstance(value, list) and len(value) == num_layers:
            setattr(model.config, key, [value[layer] for layer in layers])
    model.config.num_hidden_layers = len(layers)


def _project(encoder: Encoder, texts: Sequence[str], dims: int) -> None:
    """Put a projection after the encoder's head."""
    spec = encoder.spec
    parts = [] if encoder.head is None else [part for part in encoder.head.children() if isinstance(part, Dense)]
    width = parts[-1].linear.out_features if parts else int(encoder.merged_trunk().config.hidden_size)
    if spec.dim != width:
        raise InputError(f"leave out student.dims: the recipe of {spec.model} cuts its vectors to {spec.dim} already")
    if not dims < width or len(texts) < dims:
        raise InputError(
            f"student.dims {dims}: expected fewer than the {width} of {spec.model}, and as many texts or more to find "
            f"its directions from ({len(texts)} are there)"
        )
    vectors = load_embedder(spec, device="cpu")(Tokenizer(spec)(pa.array(list(texts), pa.string())).input_ids)
    linear = torch.nn.Linear(width, dims, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(principal_directions(vectors.values_ND[vectors.finite_N], dims)))
    encoder.head = torch.nn.Sequential(*parts, Dense(linear, torch.nn.Identity()))
    encoder.spec = dataclasses.replace(spec, dim=dims)


def principal_directions(vectors_ND: NDArray[np.float32], dims: int) -> NDArray[np.float32]:
    """directions_PD, orthonormal: the linear map to P dims that keeps the inner products of vectors best.

    Not centred, unlike principal components, since cosines are of the vectors as they are (Eckart and Young 1936).
    """
    products_DD = vectors_ND.astype(np.float64).T @ vectors_ND.astype(np.float64)
    _, directions_DD = np.linalg.eigh(products_DD)
    directions_PD = directions_DD[:, : -dims - 1 : -1].T
    signs_P = np.sign(
        directions_PD[np.arange(dims), np.abs(directions_PD).argmax(axis=1)]
    )  # eigh leaves them to chance
    return np.asarray(directions_PD * signs_P[:, None], np.float32)


@torch.inference_mode()
def _check(folder: Path, trunk: transformers.PreTrainedModel) -> None:
    """Raise InputError where the folder's model is not the one that was written."""
    written = embedder_spec(str(folder.resolve()), EmbedderConfig(prompt=""), folder)
    tokenizer = Tokenizer(written)
    loaded = load_trunk(written, tokenizer, torch.float32, merge_adapters=True)
    ids_BL = selftest.probe_ids(tokenizer)
    wanted_BLD, found_BLD = trunk(input_ids=ids_BL).last_hidden_state, loaded(input_ids=ids_BL).last_hidden_state
    difference = float((wanted_BLD - found_BLD).abs().max() / wanted_BLD.abs().max())
    if not difference < TOLERANCE:
        raise InputError(
            f"choose other layers, the first among them: loaded again, {folder} differs from the layers it was made "
            f"of ({difference:.1g} of the largest state); {trunk.config.model_type} has layers that are not alike"
        )
