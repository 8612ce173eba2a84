"""The state of a run between steps: trained weights, optimizer and step, in files that anything safe can read.

    weights.safetensors, optimizer.safetensors                               of a model that each rank has all of
    weights-0002-of-0004.safetensors, optimizer-0002-of-0004.safetensors     the rows of one rank of four (FSDP2)
    progress.json                                                            written by the first rank

Any number of ranks reads what any number has written: each takes the rows that are its own now.
Dropout is seeded by step and batches follow from the step number, so a run that goes on from here is bit for bit the
run that was never stopped.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from operators.errors import InputError
from operators.training.model.sharding import is_sharded, own_rows

Parameters = Mapping[str, torch.nn.Parameter]  # all that are trained, by name

PROGRESS = "progress.json"
_WEIGHTS, _OPTIMIZER = "weights", "optimizer"
_FIRST_ROWS = "first_rows"  # of a file's tensors, where they are not whole: a JSON object in its metadata


class DamagedState(InputError):
    """A stored state does not read."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    step: int  # the next one
    run: str  # fingerprint of what is trained, on what and how: another run's state is refused
    shards: int = 1  # ranks that wrote a part each; `save` knows

    @property
    def weight_files(self) -> tuple[str, ...]:
        """The names of the files that have the weights."""
        return _file_names(_WEIGHTS, self.shards)


def save(folder: Path, parameters: Parameters, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write this rank's part of the state to an empty folder on this machine.

    Where the model is sharded every rank is to, each to a folder of its own; the state is all their files together.
    Raises InputError where there is no room for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = _names(parameters, optimizer)
    moments = {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    sharded = any(is_sharded(parameter) for parameter in parameters.values())
    rank, shards = (dist.get_rank(), dist.get_world_size()) if sharded else (0, 1)
    try:
        for kind, tensors in ((_WEIGHTS, parameters), (_OPTIMIZER, moments)):
            _write(folder / _file_names(kind, shards)[rank], tensors, rank)
        if rank == 0:
            (folder / PROGRESS).write_text(json.dumps(asdict(replace(progress, shards=shards))))
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
    files = [folder / name for name in _file_names(_OPTIMIZER, progress.shards)]
    keys = sorted({key for file in files for key in _tensor_names(file)})
    load_weights(folder, parameters)
    _names(parameters, optimizer)
    moments: dict[str, torch.Tensor] = {}
    for key in keys:
        name, _, kind = key.rpartition("/")
        own = parameters[name]
        # AdamW counts on the CPU, unless its step is one kernel
        counted_on = own.device if optimizer.defaults.get("fused") else torch.device("cpu")
        moments[key] = torch.zeros((), device=counted_on) if kind == "step" else torch.zeros_like(own.detach())
        optimizer.state[own][kind] = moments[key]
    _read(files, moments)
    return progress


def load_weights(folder: Path, parameters: Parameters) -> None:
    """Put saved weights in place. Raises DamagedState for files that are damaged, InputError for another model's."""
    files = [folder / name for name in read_progress(folder).weight_files]
    if {name for file in files for name in _tensor_names(file)} != set(parameters):
        raise InputError(f"the state in {folder} has other weights than the model that is trained")
    _read(files, parameters)


def read_progress(folder: Path) -> Progress:
    """How far a saved run is."""
    try:
        return Progress(**json.loads((folder / PROGRESS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedState(f"{PROGRESS} does not read: {error}") from None


def _file_names(kind: str, shards: int) -> tuple[str, ...]:
    if shards == 1:
        return (f"{kind}.safetensors",)
    return tuple(f"{kind}-{number:04d}-of-{shards:04d}.safetensors" for number in range(1, shards + 1))


def _write(file: Path, tensors: Mapping[str, torch.Tensor], rank: int) -> None:
    """This rank's rows of sharded tensors; whole ones are the first rank's to write."""
    rows: dict[str, torch.Tensor] = {}
    first_rows: dict[str, int] = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            own, first_rows[name] = own_rows(tensor.detach())
            rows[name] = own.contiguous()
        elif rank == 0:
            rows[name] = tensor.detach().contiguous()
    metadata = {_FIRST_ROWS: json.dumps(first_rows)} if first_rows else None
    safetensors.torch.save_file(rows, file, metadata=metadata)


def _tensor_names(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise DamagedState(f"{file.name} does not read: {error}") from None


def _read(files: Sequence[Path], tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill tensors, or this rank's rows of them, in place."""
    filled: dict[str, int] = defaultdict(int)
    for file in files:
        try:
            with safe_open(file, "pt") as opened, torch.no_grad():
                first_rows = json.loads((opened.metadata() or {}).get(_FIRST_ROWS, "{}"))
                for name in opened.keys():  # noqa: SIM118  # no mapping
                    saved = opened.get_slice(name) if opened.get_slice(name).get_shape() else opened.get_tensor(name)
                    filled[name] += _fill(tensors[name], saved, first_rows.get(name, 0))
        except (OSError, SafetensorError) as error:
            raise DamagedState(f"{file.name} does not read: {error}") from None
    for name, tensor in tensors.items():
        if filled[name] != own_rows(tensor)[0].numel():
            raise DamagedState(f"{files[0].name} and the others lack rows of {name!r}")


def _fill(tensor: torch.Tensor, saved: Any, first: int) -> int:
    """Copy what is this rank's of saved rows; how many numbers that is."""
    own, own_first = own_rows(tensor)
    if isinstance(saved, torch.Tensor):  # a number
        own.copy_(saved)
        return own.numel()
    begin, end = max(first, own_first), min(first + saved.get_shape()[0], own_first + len(own))
    if begin >= end:
        return 0
    part = own[begin - own_first : end - own_first]
    part.copy_(saved[begin - first : end - first])
    return part.numel()


def _names(parameters: Parameters, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    by_id = {id(parameter): name for name, parameter in parameters.items()}
    missing = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in by_id]
    assert not missing, "the optimizer's parameters are those of the run"
    return by_id
