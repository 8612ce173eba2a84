"""LoRA adapters on a trunk: applied as they were trained, whole or refused.

An adapter names the layers it changes as they were called where it was trained: `model.layers.0...` in a language
model, `layers.0...` in its trunk. Loaded onto the other of the two, PEFT only warns and the base model embeds. Here the
names are made those of the trunk first, and a weight without its place, or a place without its weight, is an
InputError.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import peft
import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError

from operators.embedder.recipe.adapter_files import AdapterFiles
from operators.errors import InputError

SAVED_PREFIX = "base_model.model."  # of every weight that PEFT saves
LANGUAGE_MODEL_PREFIX = "model."  # of the trunk's layers, where a whole language model was trained
UNUSED = ("lm_head.", "score.", "classifier.")  # what embedding does not compute


def apply_adapter(
    model: transformers.PreTrainedModel, files: AdapterFiles, merge: bool, probe_ids_1L: torch.Tensor
) -> transformers.PreTrainedModel:
    """The trunk with an adapter, merged into its weights or beside them; the same object, in eval mode.

    Raises InputError for an adapter that does not match the trunk, or that does not change the states of the probe.
    """
    weights = _on_trunk(_read(files), model, files.folder)
    causal = getattr(model.config, "is_causal", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # such as of keys that are not found
            warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 for a renamed attribute
            config = peft.PeftConfig.from_pretrained(str(files.folder))
            config.inference_mode, config.task_type = True, None
            adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
            _check_keys(set(weights), set(peft.get_peft_model_state_dict(adapted)), files.folder)
            peft.set_peft_model_state_dict(adapted, weights)
    except InputError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, UserWarning) as error:
        raise InputError(
            f"the adapter {files.folder} does not fit the model: {' '.join(str(error).split())}"
        ) from error
    adapted.eval()
    _check_effect(adapted, probe_ids_1L, files.folder)
    trunk = adapted.merge_and_unload() if merge else adapted.base_model.model
    if causal is not None:
        trunk.config.is_causal = causal
    assert isinstance(trunk, transformers.PreTrainedModel)
    return trunk.eval()


def _read(files: AdapterFiles) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(files.weights)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read the adapter {files.weights}: {error}") from error


def _on_trunk(weights: dict[str, torch.Tensor], model: torch.nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """The weights under the names that they have on the trunk, those of layers that embedding does not use left out."""
    modules = {name for name, _ in model.named_modules()}
    named = {}
    for key, weight in weights.items():
        name = key.removeprefix(SAVED_PREFIX)
        if name.startswith(UNUSED):
            continue
        if _module(name) not in modules:
            name = name.removeprefix(LANGUAGE_MODEL_PREFIX)
        if _module(name) not in modules:
            raise InputError(
                f"the adapter {folder} does not match the model: it changes {_module(key)!r}, which "
                f"{type(model).__name__} has not, with or without {LANGUAGE_MODEL_PREFIX!r} before it"
            )
        named[SAVED_PREFIX + name] = weight
    return named


def _module(key: str) -> str:
    """The layer that a weight such as `layers.0.self_attn.q_proj.lora_A.weight` changes."""
    return key.partition(".lora_")[0]


def _check_keys(found: set[str], expected: set[str], folder: Path) -> None:
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        raise InputError(
            f"the adapter {folder} does not match the model: {len(missing)} weights are missing ({missing[:2]}) and "
            f"{len(unexpected)} are not expected ({unexpected[:2]}): its adapter_config.json is of another model"
        )


@torch.inference_mode()
def _check_effect(adapted: peft.PeftModel, probe_ids_1L: torch.Tensor, folder: Path) -> None:
    states_1LD = adapted(input_ids=probe_ids_1L).last_hidden_state
    with adapted.disable_adapter():
        base_1LD = adapted(input_ids=probe_ids_1L).last_hidden_state
    if torch.equal(states_1LD, base_1LD):
        raise InputError(f"the adapter {folder} changes nothing: its vectors are those of the base model")
