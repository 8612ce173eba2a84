"""The state of a run between steps: trained weights, optimizer and step, in files that anything safe can read.

Dropout is seeded by step and batches follow from the step number, so a run that goes on from here is bit for bit the
run that was never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from operators.errors import InputError

Parameters = Mapping[str, torch.nn.Parameter]  # all that are trained, by name

WEIGHTS, _OPTIMIZER, PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"


class DamagedState(InputError):
    """A stored state does not read."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    step: int  # the next one
    run: str  # fingerprint of what is trained, on what and how: another run's state is refused


def save(folder: Path, parameters: Parameters, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write the state to an empty folder on this machine. Raises InputError where there is no room for it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = _names(parameters, optimizer)
    weights = {name: parameter.detach().contiguous() for name, parameter in parameters.items()}
    moments: dict[str, torch.Tensor] = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            moments[f"{names[id(parameter)]}/{key}"] = torch.as_tensor(value).contiguous()
    try:
        safetensors.torch.save_file(weights, folder / WEIGHTS)
        safetensors.torch.save_file(moments, folder / _OPTIMIZER)
        (folder / PROGRESS).write_text(json.dumps(asdict(progress)))
    except (OSError, SafetensorError) as error:
        raise InputError(f"make room in {folder.parent}: the state cannot be written there ({error})") from None


def load(folder: Path, parameters: Parameters, optimizer: torch.optim.Optimizer, run: str) -> Progress:
    """Put a saved state in place. Raises InputError for one of another run, DamagedState for one that does not read."""
    progress = read_progress(folder)
    if progress.run != run:
        raise InputError(
            f"give output.path another folder: {folder} has the state of a run with another model, data or settings "
            f"({progress.run[:12]}, this is {run[:12]})"
        )
    moments = _tensors(folder / _OPTIMIZER)
    load_weights(folder / WEIGHTS, parameters)
    _names(parameters, optimizer)
    for key, value in moments.items():
        name, _, kind = key.rpartition("/")
        own = parameters[name]
        optimizer.state[own][kind] = value if kind == "step" else value.to(own.device)
    return progress


def load_weights(file: Path, parameters: Parameters) -> None:
    """Put saved weights in place. Raises DamagedState for a file that is damaged, InputError for another model's."""
    weights = _tensors(file)
    if set(weights) != set(parameters):
        raise InputError(f"the state in {file.parent} has other weights than the model that is trained")
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)


def read_progress(folder: Path) -> Progress:
    """How far a saved run is."""
    try:
        return Progress(**json.loads((folder / PROGRESS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedState(f"{PROGRESS} does not read: {error}") from None


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise DamagedState(f"{file.name} does not read: {error}") from None


def _names(parameters: Parameters, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    by_id = {id(parameter): name for name, parameter in parameters.items()}
    missing = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in by_id]
    assert not missing, "the optimizer's parameters are those of the run"
    return by_id
