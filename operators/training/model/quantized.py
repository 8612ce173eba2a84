"""Frozen weights of 4 bits beside adapters of 32: QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

The matrices of all blocks become NF4, 64 weights to a constant of 8 bits, 256 of those to one of 32 (their double
quantisation): 4.127 bits a weight. Products take them in bfloat16, one layer at a time. Embeddings and norms stay as
they were loaded: norms compute in float32 by themselves, and with weights in it all states after them would be float32.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from operators.errors import InputError

_BLOCK = 64  # weights with one constant


def quantize(model: torch.nn.Module, device: torch.device) -> None:
    """Make the matrices of a model's blocks NF4 on the device, layer by layer; the model may be on the CPU."""
    library = _library()
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise InputError(f"leave out tuning.lora.quantized: {type(model).__name__} has no blocks that are known")
    for parent in [module for block in blocks for module in block.modules()]:
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear:
                if layer.in_features % _BLOCK:  # bitsandbytes 0.50 on a CPU gives blocks across rows wrong constants
                    raise InputError(
                        f"leave out tuning.lora.quantized: {name} has {layer.in_features} inputs, no multiple of "
                        f"{_BLOCK}"
                    )
                setattr(parent, name, _quantized(layer, device, library))
    setattr(model, "is_loaded_in_4bit", True)  # noqa: B010  # by which peft knows


def dequantize(trunk: torch.nn.Module) -> None:
    """Put plain float32 layers on the CPU in the place of those of 4 bits, the updates of their adapters added.

    The update was trained beside the rounded weights, not beside those of the checkpoint; and rounding the sum to 4
    bits, as peft does, would lose most of it.
    """
    for parent in [module for module in trunk.modules() if not isinstance(module, BaseTunerLayer)]:
        for name, layer in list(parent.named_children()):
            base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
            if hasattr(getattr(base, "weight", None), "quant_state"):
                setattr(parent, name, _plain(layer, base))


def _quantized(layer: torch.nn.Linear, device: torch.device, library: ModuleType) -> torch.nn.Module:
    settings = {"quant_type": "nf4", "compress_statistics": True}
    with torch.device("meta"):
        found: torch.nn.Module = library.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=torch.bfloat16, **settings
        )
    found.weight = library.nn.Params4bit(layer.weight.detach(), requires_grad=False, **settings).to(device)
    if layer.bias is not None:
        found.bias = torch.nn.Parameter(layer.bias.detach().to(device), requires_grad=False)
    return found


@torch.no_grad()
def _plain(layer: Any, base: Any) -> torch.nn.Linear:
    weight = _library().functional.dequantize_4bit(base.weight.data, base.weight.quant_state).to(torch.float32)
    for adapter in getattr(layer, "active_adapters", ()):
        weight += layer.get_delta_weight(adapter).to(torch.float32)
    with torch.device("meta"):
        found = torch.nn.Linear(base.in_features, base.out_features, base.bias is not None)
    found.weight = torch.nn.Parameter(weight.cpu(), requires_grad=False)
    if base.bias is not None:
        found.bias = torch.nn.Parameter(base.bias.detach().to("cpu", torch.float32), requires_grad=False)
    return found


def _library() -> ModuleType:
    try:
        import bitsandbytes
    except ImportError as error:
        raise InputError(
            "install the extra: pip install 'embedfleet[qlora]' (tuning.lora.quantized needs bitsandbytes, which is "
            "not found)"
        ) from error
    library: ModuleType = bitsandbytes
    return library
