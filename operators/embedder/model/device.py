"""The device that a process computes on, how torch uses it, and in which number formats."""

from __future__ import annotations

import os

import torch

from operators.embedder.recipe.keywords import ComputeDtype, Device
from operators.errors import InputError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def prepare_process(device: Device, threads: int | None) -> torch.device:
    """The device to compute on, with `threads` of torch, None for its own choice; raises InputError without a GPU."""
    if threads is not None:
        torch.set_num_threads(threads)
    # huge pages for tensors of 2 MB and more, read when the process allocates its first: 5 % more tokens/s on Linux
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("embedder.device is cuda, but torch finds no GPU here: set embedder.device=auto or cpu")
    return torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(wanted: ComputeDtype, device: torch.device) -> torch.dtype:
    """The format to compute in where a recipe names one: float32 where the device would emulate it.

    Emulated products are up to 25 times slower than float32's on CPUs, few of which have any of float16.
    """
    half = _DTYPES[wanted]
    return half if half == torch.float32 or multiplies(half, device) else torch.float32


def multiplies(half: torch.dtype, device: torch.device) -> bool:
    """Whether a device has products of bfloat16 or float16 in hardware.

    On a CPU oneDNN is asked too: what the CPU can do may be hidden from it (`ONEDNN_MAX_CPU_ISA`); it then emulates.
    """
    if device.type == "cuda":
        return half == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    if half != torch.bfloat16:
        return False
    capabilities = torch.cpu.get_capabilities()
    in_hardware = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    asks_onednn = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    return in_hardware and (not asks_onednn or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
