"""A trunk made ready to be trained as a config's `tuning` says, and made a plain model again afterwards.

weights                     float32, adapters and whole models alike: an update is often too small for bfloat16
frozen beside adapters      float32, or bfloat16 where products are in it
products                    in `precision`, by autocast
"""

from __future__ import annotations

import peft
import torch
import transformers

from operators.errors import InputError
from operators.training.config.tuning import Lora, Tuning
from operators.training.model.quantized import dequantize, quantize


def loading_dtype(tuning: Tuning) -> torch.dtype:
    """What a trunk's weights are loaded in: bfloat16 where they are frozen and products are in it."""
    frozen = tuning.lora is not None
    return torch.bfloat16 if frozen and tuning.precision == "bfloat16" else torch.float32


def tuned(model: transformers.PreTrainedModel, tuning: Tuning, device: torch.device) -> torch.nn.Module:
    """The trunk with its dropout, adapters and checkpointing, on the device if it is quantized.

    Raises InputError where adapters do not fit.
    """
    trunk: torch.nn.Module = model
    _set_dropout(model, tuning)
    if tuning.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if tuning.lora is None:
        return trunk
    if tuning.lora.quantized is not None:
        quantize(model, device)
    adapted = _adapted(model, tuning.lora)
    if tuning.precision == "bfloat16":
        for module in adapted.modules():
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
                setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010  # autocast casts the adapter instead
    if tuning.gradient_checkpointing:
        model.enable_input_require_grads()  # else nothing before the first adapter needs a gradient, and none flows
    return adapted


def merged(trunk: torch.nn.Module) -> transformers.PreTrainedModel:
    """The trunk on the CPU in float32, its adapters added to the weights they were trained beside; no longer trained.

    In bfloat16 the sum would lose what of an update is smaller than 1/256 of its weight.
    """
    dequantize(trunk)
    trunk.to("cpu", torch.float32)
    plain = trunk.merge_and_unload() if isinstance(trunk, peft.PeftModel) else trunk
    assert isinstance(plain, transformers.PreTrainedModel), "a trunk is a model of transformers"
    return plain


def _adapted(model: transformers.PreTrainedModel, lora: Lora) -> peft.PeftModel:
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none"
    )
    try:
        return peft.get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise InputError(f"tuning.lora.targets {targets} do not fit the model: {error}") from error


def _set_dropout(model: torch.nn.Module, tuning: Tuning) -> None:
    """Override a model's dropout where it applies it."""
    for module in model.modules():
        own = getattr(module, "dropout", None)
        of_attention = type(module).__name__.endswith("SelfAttention")  # BERT's kind; decoders keep a number
        wanted = tuning.attention_dropout if of_attention else tuning.dropout
        if isinstance(own, torch.nn.Dropout) and wanted is not None:
            own.p = wanted
        if isinstance(getattr(module, "attention_dropout", None), float) and tuning.attention_dropout is not None:
            setattr(module, "attention_dropout", tuning.attention_dropout)  # noqa: B010  # a number, not a module
